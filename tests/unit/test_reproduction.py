"""What differs between two makings of an artifact, and which code makes it again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from selfdistill.artifacts.store import Artifact, freeze, make_frozen_spec
from selfdistill.cli.reproduce import _passes
from selfdistill.files import key_of
from selfdistill.reproduction.comparison import circumstances, compare
from selfdistill.reproduction.scratch import Code, Scratch
from selfdistill.schema.errors import UserError


def made(root: Path, payload: str = "weights", loss: float = 1.0, **attempt: Any) -> Artifact:
    """A sealed artifact with a metric, a cost, and a record of how it was made."""
    spec = make_frozen_spec("sample", {"distinct": 1, "repeats": 1, "seed": 0}, {})
    artifact = Artifact(root / "results/artifacts/sample" / f"x-{key_of(spec)}")
    artifact.payload.mkdir(parents=True)
    freeze(artifact.folder, spec)
    (artifact.payload / "model.bin").write_text(payload)
    artifact.metrics.write_text(json.dumps({"step": 1, "loss": loss, "seconds_step": hash(root)}) + "\n")
    artifact.seal({"accuracy": loss / 2, "seconds": hash(root)})
    record = {"commit": "c" * 40, "dirty": None, "runtime": {"device": "cpu"}, "libraries": {"torch": "2.13"}}
    (artifact.folder / "provenance.json").write_text(json.dumps({"attempts": [record | attempt]}))
    return artifact


def test_equal_bytes_pass_whatever_the_seconds(tmp_path):
    one, other = made(tmp_path / "a"), made(tmp_path / "b")
    assert compare(one, other).is_equal
    assert list(circumstances(one, other)) == []
    assert _passes(compare(one, other), one, other, 0.0)


def test_on_a_cpu_any_difference_fails_and_is_named(tmp_path):
    one, other = made(tmp_path / "a"), made(tmp_path / "b", payload="wEights", loss=1.01)
    difference = compare(one, other)
    assert difference.files == ["payload/model.bin differs"]
    assert difference.values == {"summary.accuracy": (0.5, 0.505), "step 1 loss": (1.0, 1.01)}
    assert not _passes(difference, one, other, tolerance=0.5)


@pytest.mark.parametrize(("tolerance", "passes"), [(0.02, True), (0.005, False)])
def test_on_a_gpu_metrics_pass_within_the_tolerance(tmp_path, tolerance, passes):
    one = made(tmp_path / "a", runtime={"device": "cuda"}, devices={"gpus": ["H100"], "driver": "550"})
    other = made(tmp_path / "b", "other", 1.01, runtime={"device": "cuda"}, devices={"gpus": ["A100"], "driver": "560"})
    assert _passes(compare(one, other), one, other, tolerance) is passes
    assert list(circumstances(one, other)) == [
        "hardware: devices.gpus[0] H100 -> A100", "hardware: devices.driver 550 -> 560",
    ]  # fmt: skip


def test_a_metric_that_is_missing_or_not_a_number_never_passes(tmp_path):
    one, other = made(tmp_path / "a", runtime={"device": "cuda"}), made(tmp_path / "b")
    other.metrics.write_text('{"step": 1, "loss": NaN}\n')
    assert not _passes(compare(one, other), one, other, tolerance=100)
    other.metrics.write_text("")
    assert not _passes(compare(one, other), one, other, tolerance=100)


def test_a_byte_that_was_flipped_here_is_told_from_one_that_came_out_differently(tmp_path):
    one, other = made(tmp_path / "a"), made(tmp_path / "b")
    (one.payload / "model.bin").write_text("veights")
    assert compare(one, other).files == [
        "payload/model.bin differs (the recorded file was changed after it was sealed: selfdistill verify)"
    ]
    (one.payload / "model.bin").unlink()
    assert compare(one, other).files == ["payload/model.bin is only in the new artifact"]


def test_code_libraries_and_settings_that_differ_are_listed(tmp_path):
    one = made(tmp_path / "a")
    other = made(tmp_path / "b", commit="d" * 40, libraries={"torch": "2.14"}, runtime={"device": "cpu", "threads": 2})
    assert list(circumstances(one, other)) == [
        f"code: commit {'c' * 40} -> {'d' * 40}", "libraries: libraries.torch 2.13 -> 2.14",
        "settings: runtime.threads not recorded -> 2",
    ]  # fmt: skip


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.chdir(root)
    (root / ".gitignore").write_text("results/\n")
    (root / "old.py").write_text("a = 1\n")
    for command in ("init -q", "config user.name a", "config user.email a@b", "add -A", "commit -qm first"):
        subprocess.run(["git", *command.split()], check=True)
    return root


def head() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def test_the_recorded_commit_is_checked_out_with_its_changes_and_nothing_else(checkout):
    from selfdistill.artifacts.code_changes import record_code

    (checkout / "old.py").write_text("a = 2\n")
    (checkout / "new.py").write_text("b = 1\n")
    artifact = made(checkout)
    artifact.folder.joinpath("provenance.json").write_text(json.dumps({"attempts": [record_code(artifact.folder)]}))
    (checkout / "old.py").write_text("a = 3\n")
    (checkout / "config").mkdir()
    (checkout / "config/assets.local.yaml").write_text("mine: x\n")
    scratch = Scratch(checkout / "results/reproduced/x")
    code = Code.recorded(artifact)
    assert code.described.startswith(f"the recorded commit {head()[:10]} with its changes ")
    scratch.prepare(code, [artifact])
    assert (scratch.folder / "old.py").read_text() == "a = 2\n" and (scratch.folder / "new.py").is_file()
    assert (scratch.folder / "config/assets.local.yaml").is_file()
    assert [path.name for path in scratch.artifact(artifact).folder.iterdir()] == ["spec.json"]
    scratch.prepare(code, [artifact])  # again: continued
    with pytest.raises(UserError, match="holds something else"):
        scratch.prepare(Code.present(), [artifact])
    other = Scratch(checkout / "results/reproduced/y")
    other.prepare(Code.present(), [artifact])
    assert (other.folder / "old.py").read_text() == "a = 3\n"


def test_a_scratch_folder_that_is_a_file_or_has_a_damaged_marker_is_one_line(checkout):
    artifact, file = made(checkout), checkout / "file"
    file.write_text("x")
    for folder in (file, file / "below"):
        with pytest.raises(UserError, match=f"{file} is a file, so nothing can be made in {folder}"):
            Scratch(folder).prepare(Code.present(), [artifact])
    scratch = Scratch(checkout / "results/reproduced/x")
    scratch.prepare(Code.present(), [artifact])
    for content in (b"{", b"[" * 100_000, b"\xff", b"[]"):
        (scratch.folder / ".reproduce.json").write_bytes(content)
        with pytest.raises(UserError, match="holds something else"):
            scratch.prepare(Code.present(), [artifact])


def test_code_that_is_not_known_or_not_kept_says_how_to_go_on(checkout):
    unknown, gone = made(checkout / "a", commit=None), made(checkout / "b")
    lost = made(checkout / "c", commit=head(), dirty="0123456789ab", changes=None)
    for artifact, message in (
        (unknown, "has no recorded commit"), (gone, "is not in this repository: git fetch"),
        (lost, "with changes that were not kept"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{message}.*--present-code"):
            Code.recorded(artifact)
