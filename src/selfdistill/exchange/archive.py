"""Archives: a tar file compressed by zstd, written and read as a stream, with a manifest of SHA-256 digests inside.

`zstd -d < study.tar.zst | tar x` unpacks one, too. The manifest is the last file, since a stream is hashed while it is
written. An import unpacks beside the results, compares every digest, and moves only what is right into place.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard

from selfdistill.artifacts.store import ROOT
from selfdistill.exchange.checks import (
    FORMAT,
    MANIFEST,
    checked_artifacts,
    checked_manifest,
    checked_targets,
    is_safe_name,
)
from selfdistill.exchange.placing import Imported, place, place_target, refuse_conflicts
from selfdistill.exchange.selection import WEIGHTS, WORKFLOW, Selection
from selfdistill.files import pretty_json, replacing, sha256_bytes
from selfdistill.schema.errors import UserError

CRATE = "ro-crate-metadata.json"
_CHUNK = 1 << 20


def write(selection: Selection, out: Path, crate: str) -> int:
    """Write an archive of a selection, with `crate` as its RO-Crate metadata; returns the number of files.

    UserError, and nothing is written, if a file is missing or was changed after it was sealed.
    """
    missing = [path for path, _ in selection.files() if not path.is_file()]
    if missing:
        option = "--without-weights" if missing[0].suffix in WEIGHTS else "--without-rollouts"
        raise UserError(
            f"{missing[0]} is missing (files that are missing: {len(missing)}). If an archive without it was imported "
            f"here, export without it, too: {option}. Otherwise: selfdistill verify. Nothing was written."
        )
    written: dict[str, dict[str, Any]] = {}
    with replacing(out) as partial, partial.open("wb") as file:
        compressor = zstandard.ZstdCompressor(level=3, threads=-1)
        with compressor.stream_writer(file, closefd=False) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            written[CRATE] = _add_text(tar, CRATE, crate)
            for path in selection.workflow_files():
                written[f"{WORKFLOW}/{path}"] = _add(tar, f"{WORKFLOW}/{path}", path)
            for path, sealed in selection.files():
                written[str(path)] = _add(tar, str(path), path)
                if sealed not in (None, written[str(path)]["sha256"]):
                    raise UserError(
                        f"{path} was changed after it was sealed (selfdistill verify). Nothing was written."
                    )
            manifest = {
                "format": FORMAT,
                "artifacts": [artifact.name for artifact in selection.artifacts],
                "targets": [str(target) for target in selection.targets],
                "left_out": selection.left_out,
                "files": written,
            }
            _add_text(tar, MANIFEST, pretty_json(manifest))
    return len(written)


def read(archive: Path, root: Path = ROOT) -> Imported:
    """Bring the results of an archive into this project.

    UserError, and nothing changed, if anything is wrong with the archive. A job that starts meanwhile stops the import
    between two artifacts; importing again completes it. An artifact that is here already with the same content stays.
    One with other content is an error: two makings of one spec cannot both be its result. A table that is here with
    other content stays, too.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=root.parent) as name:
        staging = Path(name)
        found = _unpack(archive, staging)
        manifest = checked_manifest(archive, staging, found)
        artifacts = checked_artifacts(archive, staging, manifest)
        targets = checked_targets(archive, staging, manifest)
        refuse_conflicts(artifacts, root)
        imported = Imported(left_out=manifest["left_out"])
        place(artifacts, root, imported)
        for target, plan in targets.items():
            place_target(staging, target, plan, imported)
    return imported


# --- writing ----------------------------------------------------------------------------------------------------------


def _add(tar: tarfile.TarFile, name: str, path: Path) -> dict[str, Any]:
    """Add a file (of a link, what it points to) and hash it on the way. UserError if it changes meanwhile."""
    info = tarfile.TarInfo(name)
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        info.size, info.mtime, info.mode = state.st_size, int(state.st_mtime), 0o644
        hashing = _Hashing(file)
        try:
            tar.addfile(info, hashing)
        except OSError as error:
            raise UserError(f"{path} cannot be read, or changed while it was read: {error}.") from None
    return {"sha256": hashing.digest, "size": state.st_size}


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> dict[str, Any]:
    content = text.encode("utf-8")
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
    return {"sha256": sha256_bytes(content), "size": len(content)}


class _Hashing(io.RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._hash.update(content)
        return content

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def _unpack(archive: Path, staging: Path) -> dict[str, dict[str, Any]]:
    """Unpack the files of an archive below a folder; returns their digests and sizes by name."""
    found: dict[str, dict[str, Any]] = {}
    with _members(archive) as members:
        for info, content in members:
            if content is None or not is_safe_name(info.name) or info.name in found:
                raise UserError(
                    f"{archive} holds {repr(info.name)[:80]}, which no export writes. Nothing was imported."
                )
            target, digest = staging / info.name, hashlib.sha256()
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    while chunk := content.read(_CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
                os.utime(target, (info.mtime, info.mtime))
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                raise UserError(
                    f"{archive} holds {info.name} twice, as file and folder. Nothing was imported."
                ) from None
            found[info.name] = {"sha256": digest.hexdigest(), "size": info.size}
    return found


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]]:
    """The files of an archive with their content (None for what is no file); UserError if it is damaged."""
    try:
        with (
            archive.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            yield ((info, tar.extractfile(info) if info.isreg() else None) for info in tar)
    except FileNotFoundError:
        raise UserError(f"{archive} does not exist.") from None
    except IsADirectoryError:
        raise UserError(f"{archive} is a folder, not an archive of `selfdistill export`.") from None
    except (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError, OverflowError) as error:
        raise UserError(f"{archive} is damaged, or not an archive of `selfdistill export`: {error}.") from None
