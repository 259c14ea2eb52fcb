"""Entries of the asset lock that somebody else wrote: they cannot run a program, nor write outside their folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from selfdistill.assets import Assets, add_local, fetch
from selfdistill.assets.download import Unreachable, extract_from_wheel
from selfdistill.schema.assets import LOCK_FILE, read_assets
from selfdistill.schema.errors import UserError

CONTENT = b"question,answer\n1+1,2\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "5c" * 20
OTHERS = {"licence": "mit", "kind": "dataset"}
HUB = OTHERS | {"source": "hub", "repo": "a/b", "revision": COMMIT}
GIT = OTHERS | {"source": "git", "repo": "a/b", "url": "https://x/y", "revision": COMMIT}
UNRESOLVED = {"revision": "unresolved", "reason": "new"}
WHEEL = OTHERS | {"source": "package", "repo": "thing", "version": "1.0", "files": {"thing/x.csv": DIGEST}}


def write(root: Path, entries: dict) -> None:
    (root / LOCK_FILE).parent.mkdir(exist_ok=True)
    (root / LOCK_FILE).write_text(yaml.safe_dump(entries), encoding="utf-8")
    (root / "config/config.yaml").touch()


ENTRIES = {
    "an option as url": ({"x": GIT | UNRESOLVED | {"url": "--upload-pack=touch pwned", "ref": "main"}}, "x.url"),
    "a program as url": ({"x": GIT | {"url": "ext::sh -c touch% pwned"}}, "x.url"),
    "a helper as url": ({"x": GIT | {"url": "fd::17/foo"}}, "x.url"),
    "an option of ssh as host": ({"x": GIT | {"url": "ssh://-oProxyCommand=touch pwned/x"}}, "x.url"),
    "an option of ssh before the colon": ({"x": GIT | {"url": "-oProxyCommand=touch@x:y"}}, "x.url"),
    "an option as ref": ({"x": GIT | UNRESOLVED | {"ref": "--upload-pack=touch pwned"}}, "x.ref"),
    "an option as revision": ({"x": GIT | {"revision": "--upload-pack=touch pwned"}}, "x.revision"),
    "an option as package": ({"x": WHEEL | {"repo": "--index-url=file:///tmp"}}, "x.repo"),
    "a url as package": ({"x": WHEEL | {"repo": "thing @ file:///tmp/x.whl #"}}, "x.repo"),
    "a path as repository": ({"x": HUB | {"repo": "../../etc"}}, "x.repo"),
    "an option as version": ({"x": WHEEL | {"version": "1.0 --index-url=x"}}, "x.version"),
    "a file above its folder": ({"x": HUB | {"files": {"../../../../x": DIGEST}}}, "x.files"),
    "a file of a wheel above its folder": ({"x": WHEEL | {"files": {"a/../../x": DIGEST}}}, "x.files"),
    "an absolute file": ({"x": HUB | {"files": {"/etc/x": DIGEST}}}, "x.files"),
    "a file of Windows": ({"x": HUB | {"files": {"..\\x": DIGEST}}}, "x.files"),
    "a file with an end": ({"x": HUB | {"files": {"x\0.csv": DIGEST}}}, "x.files"),
    "an option as file": ({"x": HUB | {"files": {"--output=x": DIGEST}}}, "x.files"),
    "no file": ({"x": HUB | {"files": {"": DIGEST}}}, "x.files"),
    "a name above resources": ({"../../x": HUB}, "../../x"),
    "no name": ({"": HUB}, "name of an asset"),
    "an absolute name": ({"/etc": HUB}, "/etc"),
    "an option as name": ({"--help": HUB}, "--help"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_hostile_entry_is_refused_before_anything_runs(tmp_path, case):
    entries, place = ENTRIES[case]
    write(tmp_path, entries)
    with pytest.raises(UserError) as raised:
        read_assets(tmp_path)
    assert str(raised.value).startswith(str(LOCK_FILE)) and place in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_line_runs_nothing_of_a_hostile_entry(tmp_path):
    write(tmp_path, {"x": GIT | UNRESOLVED | {"url": f"--upload-pack=touch {tmp_path}/pwned", "ref": "."}})
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = command(tmp_path, "fetch", "x")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "pwned").exists()


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "selfdistill.cli", "assets", *arguments]
    sources = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": sources, "HF_HUB_OFFLINE": "0", "SELFDISTILL_OFFLINE": "0"}
    return subprocess.run(words, capture_output=True, text=True, cwd=root, env=environment)


@pytest.mark.parametrize("words", [("add", "../x", "own.csv"), ("add", "--", "-x", "own.csv"), ("add", "", "own.csv"),
                                   ("fetch", "math", "../../../x.csv"), ("fetch", "math", "/etc/passwd")])  # fmt: skip
def test_the_command_line_takes_no_such_name_either(tmp_path, words):
    write(tmp_path, {"math": GIT})
    (tmp_path / "own.csv").write_bytes(CONTENT)
    before = (tmp_path / LOCK_FILE).read_bytes()
    done = command(tmp_path, *words)
    assert done.returncode == 2 and done.stderr.startswith("error: `") and done.stderr.count("\n") == 1
    assert (tmp_path / LOCK_FILE).read_bytes() == before and not (tmp_path / "config/assets.local.yaml").exists()


def repository(folder: Path, make) -> tuple[str, str]:
    """A git repository with what `make` puts into it: url, commit."""
    folder.mkdir()
    make(folder)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["config", "uploadpack.allowAnySHA1InWant", "true"], ["add", "."],
                  ["commit", "-q", "-m", "x"]):  # fmt: skip
        subprocess.run([*git, *words], check=True)
    return folder.as_uri(), subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()


def a_link(folder: Path) -> None:
    (folder / "x.csv").symlink_to("/etc/passwd")


def a_folder_that_is_a_link(folder: Path) -> None:
    (folder / "data").symlink_to("/etc")


def a_folder(folder: Path) -> None:
    (folder / "x.csv").mkdir()
    (folder / "x.csv/y").write_text("y")


@pytest.mark.parametrize(
    ("make", "file"), [(a_link, "x.csv"), (a_folder_that_is_a_link, "data/passwd"), (a_folder, "x.csv")]
)
def test_a_repository_cannot_lead_to_files_of_this_machine(tmp_path, make, file):
    url, commit = repository(tmp_path / "theirs", make)
    write(tmp_path, {"x": GIT | {"url": url, "revision": commit}})
    with pytest.raises(UserError, match=r"not a file but a link|cannot be downloaded"):
        fetch(Assets.here(tmp_path), "x", [file])
    assert not (tmp_path / "resources").exists()


def test_a_file_is_taken_by_its_name_and_not_as_a_pattern(tmp_path):
    url, commit = repository(tmp_path / "theirs", lambda folder: (folder / "x.csv").write_bytes(CONTENT))
    write(tmp_path, {"x": GIT | {"url": url, "revision": commit}})
    with pytest.raises(UserError, match="did not match any file"):
        fetch(Assets.here(tmp_path), "x", [":(glob)**/x.csv"])
    assert [path.read_bytes() for path in fetch(Assets.here(tmp_path), "x", ["x.csv"])] == [CONTENT]


@pytest.mark.parametrize("changes", [{}, UNRESOLVED])
def test_no_message_holds_the_password_of_a_repository(tmp_path, changes):
    write(tmp_path, {"x": GIT | {"url": "http://me:it's-hunter22@127.0.0.1:9/x", "files": {"x.csv": DIGEST}} | changes})
    with pytest.raises(UserError, match=r"127\.0\.0\.1") as raised:
        fetch(Assets.here(tmp_path), "x")
    assert "hunter22" not in str(raised.value)


WHEELS = {
    "no archive": lambda path: path.write_bytes(b"no archive"),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(whole(path)[:-40]),
    "damaged": lambda path: path.write_bytes(whole(path).replace(b"1+1,2", b"1+1,3", 1)),
    "without the file": lambda path: whole(path, "thing/y.csv"),
}


def whole(path: Path, member: str = "thing/x.csv") -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, CONTENT)
    return path.read_bytes()


@pytest.mark.parametrize("case", WHEELS)
def test_a_damaged_wheel_is_one_line_and_leaves_no_file(tmp_path, case):
    write(tmp_path, {"x": WHEEL})
    wheel = tmp_path / "resources/assets/x/thing-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    WHEELS[case](wheel)
    done = command(tmp_path, "check", "x")
    assert (done.returncode, done.stderr) == (1, "")
    assert wheel.name in done.stdout.replace("\n", "")
    assert [path.name for path in wheel.parent.rglob("*") if path.is_file()] == [wheel.name]


def test_a_member_of_a_wheel_is_written_where_the_caller_says(tmp_path):
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../../../escaped", CONTENT)
    extract_from_wheel(wheel, "../../../../escaped", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == CONTENT
    with pytest.raises(Unreachable, match="contains no"):
        extract_from_wheel(wheel, "escaped", tmp_path / "there")


def test_names_that_people_use_are_allowed(tmp_path):
    own = tmp_path / "own.csv"
    own.write_bytes(CONTENT)
    write(tmp_path, {"Qwen3-8B": HUB, "qwen2.5_7b": GIT | {"url": "git@github.com:a/b.git"}})
    assert add_local(Assets.here(tmp_path), "my-Data.v2", own).sha256 == DIGEST
    assert sorted(read_assets(tmp_path).assets) == ["Qwen3-8B", "qwen2.5_7b"]
