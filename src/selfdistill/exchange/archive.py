"""Archives: a tar file compressed by zstd, written and read as a stream, with a manifest of SHA-256 digests inside.

`zstd -d < study.tar.zst | tar x` unpacks one, too. The manifest is the last file, since a stream is hashed while it is
written. An import unpacks beside the results, compares every digest, and moves only what is right into place.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import zstandard

from selfdistill.artifacts.store import ROOT, Artifact
from selfdistill.exchange.selection import WORKFLOW, Selection, plan_of
from selfdistill.files import pretty_json, replacing, sync_tree
from selfdistill.plan.made_views import record_of
from selfdistill.schema.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
CRATE = "ro-crate-metadata.json"
_CHUNK = 1 << 20


def write(selection: Selection, out: Path, crate: str) -> int:
    """Write an archive of a selection, with `crate` as its RO-Crate metadata; returns the number of files."""
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


@dataclass
class Imported:
    """What an import did, by name."""

    added: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read(archive: Path, root: Path = ROOT) -> Imported:
    """Bring the results of an archive into this project. UserError, and nothing changed, if anything is wrong with it.

    An artifact that is here already with the same content stays. One with other content is an error: two makings of
    one spec cannot both be its result. A table that is here with other content stays, too.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=root.parent) as name:
        staging = Path(name)
        found = _unpack(archive, staging)
        manifest = _checked(archive, staging, found)
        imported = Imported(left_out=manifest["left_out"])
        artifacts = [Artifact(staging / ROOT / name) for name in manifest["artifacts"]]
        _check_artifacts(archive, artifacts, manifest)
        _refuse_other_content(artifacts, root)
        for artifact in artifacts:
            _place(artifact, root, imported)
        for target in manifest["targets"]:
            _place_target(staging, Path(target), imported)
    return imported


# --- writing ----------------------------------------------------------------------------------------------------------


def _add(tar: tarfile.TarFile, name: str, path: Path) -> dict[str, Any]:
    """Add a file (of a link, what it points to) and hash it on the way. UserError if it changes meanwhile."""
    info = tarfile.TarInfo(name)
    state = path.stat()
    info.size, info.mtime, info.mode = state.st_size, int(state.st_mtime), 0o644
    with path.open("rb") as file:
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
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


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
            parts = PurePosixPath(info.name).parts
            if content is None or not parts or ".." in parts or info.name.startswith("/") or info.name in found:
                raise UserError(f"{archive} holds `{info.name}`, which no export writes. Nothing was imported.")
            target = staging.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with target.open("xb") as file:
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            os.utime(target, (info.mtime, info.mtime))
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
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise UserError(f"{archive} is damaged, or not an archive of `selfdistill export`: {error}.") from None


def _checked(archive: Path, staging: Path, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The manifest of an unpacked archive. UserError if a file is missing, other than it says, or not in it."""
    found.pop(MANIFEST, None)
    try:
        manifest = json.loads((staging / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        _ = manifest["artifacts"], manifest["targets"], manifest["left_out"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{archive} is cut off: it has no manifest at its end. Nothing was imported.") from None
    if manifest.get("format") != FORMAT:
        raise UserError(f"{archive} has format {manifest.get('format')}; this version reads format {FORMAT}.")
    for name in sorted(files.keys() | found.keys()):
        if files.get(name) != found.get(name):
            missing = " is missing" if name not in found else " is not in its manifest" if name not in files else ""
            raise UserError(f"{archive}: {name}{missing or ' differs from its manifest'}. Nothing was imported.")
    return manifest


def _check_artifacts(archive: Path, artifacts: list[Artifact], manifest: dict[str, Any]) -> None:
    """Each artifact is what its own name and manifest say, left-out files aside."""
    for artifact in artifacts:
        for name, entry in Artifact.open(artifact.folder).manifest["files"].items():
            path = str(ROOT / artifact.name / name)
            if path not in manifest["left_out"] and manifest["files"].get(path, {}).get("sha256") != entry["sha256"]:
                raise UserError(f"{archive}: {path} is not what its artifact says. Nothing was imported.")


def _refuse_other_content(artifacts: list[Artifact], root: Path) -> None:
    for artifact in artifacts:
        here = _here(artifact, root)
        if here.is_sealed and here.manifest_path.read_bytes() != artifact.manifest_path.read_bytes():
            raise UserError(
                f"{artifact.name} is already here with other content. To replace it: selfdistill discard "
                f"{artifact.id} --yes. Nothing was imported."
            )


def _here(artifact: Artifact, root: Path) -> Artifact:
    """The artifact of this id in the project, or the place for it."""
    matches = sorted((root / artifact.stage).glob(f"*-{artifact.key}"))
    return Artifact(matches[0] if matches else root / artifact.name)


def _place(artifact: Artifact, root: Path, imported: Imported) -> None:
    """Move an artifact into the project, unless it is there; the manifest's folder appears by one rename."""
    here = _here(artifact, root)
    if here.is_sealed:
        imported.present.append(artifact.name)
        return
    shutil.rmtree(here.folder, ignore_errors=True)
    here.folder.parent.mkdir(parents=True, exist_ok=True)
    sync_tree(artifact.folder)
    artifact.folder.rename(root / artifact.name)
    imported.added.append(artifact.name)


def _place_target(staging: Path, target: Path, imported: Imported) -> None:
    if target.is_file() and target.read_bytes() != (staging / target).read_bytes():
        imported.kept.append(str(target))
        return
    plan = plan_of(target)
    for path in (plan, record_of(plan, str(target)), target):
        if not (staging / path).is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / path, path)
    imported.targets.append(str(target))
