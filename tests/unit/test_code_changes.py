"""Uncommitted changes are kept beside the artifact as a patch: complete, of limited size, without secrets."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from selfdistill.artifacts import code_changes
from selfdistill.artifacts.code_changes import MASK, check_package, mask_secrets, record_code
from selfdistill.schema.errors import UserError


def git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    git("init", "-q", cwd=root)
    for name in ("name", "email"):
        git("config", f"user.{name}", "a@b", cwd=root)
    (root / "old.py").write_text("a = 1\n")
    (root / "latin.py").write_bytes(b"s = '\xe9'\n")
    (root / ".gitignore").write_text("results/\n")
    git("add", "-A", cwd=root)
    git("commit", "-qm", "first", cwd=root)
    monkeypatch.chdir(root)
    return root


def changed(root: Path) -> dict[str, bytes]:
    """Every kind of change; returns the content that the tree should have again."""
    (root / "old.py").write_text("a = 2\n")
    (root / "latin.py").write_bytes(b"s = '\xe8'\n")
    (root / "my method.py").write_text("class Mine: ...\n")
    (root / "sub").mkdir()
    (root / "sub/data.bin").write_bytes(bytes(range(256)))
    (root / "results").mkdir()
    (root / "results/ignored.py").write_text("x\n")
    return {name: (root / name).read_bytes() for name in ("old.py", "latin.py", "my method.py", "sub/data.bin")}


def test_a_clean_checkout_has_no_patch_and_a_folder_outside_one_has_no_commit(checkout, tmp_path, monkeypatch):
    code = record_code(tmp_path)
    assert code == {"commit": git("rev-parse", "HEAD", cwd=checkout).strip(), "dirty": None}
    monkeypatch.chdir(tmp_path)
    assert record_code(tmp_path) == {"commit": None, "dirty": None}


def test_the_patch_gives_the_same_tree_with_new_and_binary_files_and_leaves_the_index_alone(checkout, tmp_path):
    expected = changed(checkout)
    before = git("status", "--porcelain", cwd=checkout)
    folder = tmp_path / "artifact"
    folder.mkdir()
    code = record_code(folder)
    assert git("status", "--porcelain", cwd=checkout) == before
    assert code["masked"] == 0 and code["changes"] == f"changes-{code['dirty']}.patch"
    git("clone", "-q", str(checkout), str(tmp_path / "other"), cwd=tmp_path)
    git("apply", str(folder / code["changes"]), cwd=tmp_path / "other")
    assert {name: (tmp_path / "other" / name).read_bytes() for name in expected} == expected
    assert not (tmp_path / "other/results").exists()


def test_from_a_folder_below_the_top_the_same_patch_is_taken(checkout, tmp_path, monkeypatch):
    changed(checkout)
    code = record_code(tmp_path)
    monkeypatch.chdir(checkout / "sub")
    assert record_code(tmp_path) == code


def test_large_changes_are_named_and_not_kept(checkout, tmp_path, monkeypatch):
    (checkout / "weights.bin").write_bytes(b"x" * (code_changes.MAX_NEW_FILE + 1))
    (checkout / "old.py").write_text("a = 2\n")
    assert record_code(tmp_path)["changes_left_out"] == ["weights.bin"]
    monkeypatch.setattr(code_changes, "MAX_PATCH", 20)
    code = record_code(tmp_path)
    assert code["dirty"] and code["changes"] is None and "larger than 20 bytes" in code["changes_note"]


SECRETS = (
    "hf_abcdefghijklmnopqrstuvwxyz", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "AKIAABCDEFGHIJKLMNOP",
    'api_key = "0123456789abcdef"', "password: correct-horse-battery", "postgresql://user:hunter22@host/db",
    "-----BEGIN PRIVATE KEY-----\n+MIIEvQIBADANBg\n+-----END", 'secret="s3cr3t-value"',
)  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_masked(text):
    masked, count = mask_secrets(f"+{text}\n", {})
    assert count == 1 and MASK in masked
    for part in ("abcdefghij", "ABCDEFGH", "0123456789abcdef", "battery", "hunter22", "MIIEv", "s3cr3t"):
        assert part not in masked


def test_values_of_the_environment_are_masked_and_code_is_not():
    masked, count = mask_secrets("+x = 'tops3cret!'\n", {"MLFLOW_TRACKING_TOKEN": "tops3cret!", "HOME": "/home"})
    assert (masked, count) == (f"+x = '{MASK}'\n", 1)
    sources = "".join(path.read_text() for path in (Path(__file__).parents[2] / "src").rglob("*.py"))
    assert mask_secrets(sources, {"SHORT_TOKEN": "a"}) == (sources, 0)


def test_a_secret_in_a_changed_file_does_not_reach_the_artifact(checkout, tmp_path):
    (checkout / "old.py").write_text("a = 1\nTOKEN = 'hf_abcdefghijklmnopqrstuvwxyz'\n")
    code = record_code(tmp_path)
    assert code["masked"] == 1
    assert "hf_" not in (tmp_path / code["changes"]).read_text()
    git("stash", "-q", cwd=checkout)
    git("apply", "--check", str(tmp_path / code["changes"]), cwd=checkout)


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_code_that_runs_from_elsewhere_must_be_that_of_the_checkout(tmp_path, monkeypatch, change):
    installed = tmp_path / "site-packages/selfdistill"
    here = tmp_path / "checkout/src/selfdistill"
    for folder in (installed, here):
        (folder / "training").mkdir(parents=True)
        (folder / "training/loss.py").write_text("a = 1\n")
    monkeypatch.chdir(here.parents[1])
    check_package(installed)
    loss = here / "training/loss.py"
    {
        "edit": lambda: loss.write_text("a = 2\n"),
        "add": lambda: (here / "training/new.py").write_text(""),
        "remove": loss.unlink,
    }[change]()
    name = "new" if change == "add" else "loss"
    with pytest.raises(UserError, match=rf"^src/selfdistill/training/{name}.py is not what runs: {installed} has"):
        check_package(installed)
    check_package(here)
    monkeypatch.chdir(tmp_path)
    check_package(installed)
