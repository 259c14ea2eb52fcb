"""Digests of files and folders, and the search for a file with a given digest below a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from selfdistill.files import sha256_file, sha256_text
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError


def folder_digest(folder: Path) -> str:
    """SHA-256 over `digest  relative/path` lines of a folder's files, sorted by path; hidden files are left out."""
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in visible_files(folder)]
    return sha256_text("".join(lines))


def visible_files(folder: Path) -> list[Path]:
    """Files below a folder, sorted by relative path; nothing whose path below it has a hidden part."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(shown, key=lambda path: path.relative_to(folder).as_posix())


def search(folder: Path, pin: AssetPin) -> Path | None:
    """File with the pinned digest and the pinned name, at any depth.

    A file with the folder name and file name of the pin but another digest is a changed copy: UserError.
    """
    wanted = Path(str(pin.file))
    changed = None
    for path in _named(folder, wanted.name):
        if sha256_file(path) == pin.sha256:
            return path
        if path.parent.name == wanted.parent.name:
            changed = path
    if changed is not None:
        raise differs(changed, sha256_file(changed), str(pin.sha256))
    return None


def _named(folder: Path, name: str) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob(name)) if path.is_file()) if folder.is_dir() else iter(())


def verify(path: Path, pin: AssetPin) -> Path:
    digest = sha256_file(path)
    if digest != pin.sha256:
        raise differs(path, digest, str(pin.sha256))
    return path


def differs(path: Path, found: str, wanted: str) -> UserError:
    return UserError(
        f"{path} has sha256 {found}, but {wanted} is pinned: it was changed or cut short. "
        "Move it away and fetch it again, or pin the new content under another name."
    )
