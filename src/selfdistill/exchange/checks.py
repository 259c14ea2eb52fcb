"""What an archive must be before anything of it is placed: a damaged or hostile one is one error, and no change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from selfdistill.artifacts.store import NAME_PATTERN, ROOT, Artifact
from selfdistill.exchange.selection import is_record, is_view_file
from selfdistill.files import read_json
from selfdistill.plan.subjects import shown_files
from selfdistill.plan.workspace import PLANS, read_plan
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import STAGES

FORMAT = 1
MANIFEST = "manifest.json"
#: Longest path in an archive, and longest name in it (bytes): what file systems hold, below the folder of an import.
_PATH_BYTES, _NAME_BYTES = 1024, 255
_ARTIFACT = re.compile(rf"(?P<stage>{'|'.join(STAGES)})/{NAME_PATTERN}")
_NOTHING = "Nothing was imported."


def is_safe_name(name: str) -> bool:
    """Whether a path stays inside the folder that it is unpacked to, and names one file there in one way only."""
    path = PurePosixPath(name)
    is_inside = not path.is_absolute() and path.parts and ".." not in path.parts
    if not (is_inside and name == path.as_posix() and name.isprintable()):
        return False
    return len(name.encode()) <= _PATH_BYTES and all(len(part.encode()) <= _NAME_BYTES for part in path.parts)


def checked_manifest(archive: Path, staging: Path, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest of an unpacked archive. UserError if it is none, or a file is missing, not in it, or differs."""
    if MANIFEST not in found:
        raise UserError(f"{archive} is cut off: it has no manifest at its end. {_NOTHING}")
    try:
        manifest = read_json(staging / MANIFEST)
    except ValueError as error:
        raise UserError(f"{archive}: its manifest cannot be read: {error}. {_NOTHING}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        given = manifest.get("format") if isinstance(manifest, dict) else None
        raise UserError(f"{archive} has format {str(given)[:20]}; this version reads format {FORMAT}. {_NOTHING}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise UserError(f"{archive}: `files` of its manifest is no table of files. {_NOTHING}")
    for name in ("artifacts", "targets", "left_out"):
        entries = manifest.get(name)
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{archive}: `{name}` of its manifest is no list of names. {_NOTHING}")
    for name in sorted((files.keys() | found.keys()) - {MANIFEST}):
        if files.get(name) != found.get(name):
            missing = " is missing" if name not in found else " is not in its manifest" if name not in files else ""
            raise UserError(f"{archive}: {name}{missing or ' differs from its manifest'}. {_NOTHING}")
    return manifest


def checked_artifacts(archive: Path, staging: Path, manifest: Mapping[str, Any]) -> list[Artifact]:
    """The unpacked artifacts. UserError unless each is what its name, spec and manifest say, left-out files aside."""
    found: dict[str, Artifact] = {}
    for name in manifest["artifacts"]:
        artifact = Artifact(staging / ROOT / name)
        if not _ARTIFACT.fullmatch(name) or artifact.id in found:
            raise UserError(
                f"{archive}: `artifacts` of its manifest holds {_shown(name)}, which no export writes. {_NOTHING}"
            )
        for file in ("spec.json", "manifest.json"):
            if str(ROOT / name / file) not in manifest["files"]:
                raise UserError(f"{archive}: {name} has no {file}. {_NOTHING}")
        try:
            stage = Artifact.open(artifact.folder).frozen_spec.get("stage")
            entries = artifact.manifest["files"]
        except (UserError, RecursionError):
            raise UserError(f"{archive}: spec.json or manifest.json of {name} is damaged. {_NOTHING}") from None
        if stage != artifact.stage:
            raise UserError(f"{archive}: {name} is an artifact of stage {_shown(stage)}. {_NOTHING}")
        _check_files(archive, name, entries, manifest)
        found[artifact.id] = artifact
    return list(found.values())


def _check_files(archive: Path, name: str, entries: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """An artifact's folder holds the files of its manifest, its records, and nothing else."""
    folder = ROOT / name
    for file, entry in entries.items():
        path = str(folder / file)
        if path not in manifest["left_out"] and manifest["files"].get(path, {}).get("sha256") != entry["sha256"]:
            raise UserError(f"{archive}: {_shown(path)} is not what its artifact says. {_NOTHING}")
    for path in manifest["files"]:
        inside = path.removeprefix(f"{folder}/")
        if inside != path and inside not in entries and not is_record(inside):
            raise UserError(f"{archive}: {path} is not in the manifest of its artifact. {_NOTHING}")


def checked_targets(archive: Path, staging: Path, manifest: Mapping[str, Any]) -> dict[Path, Path]:
    """Tables and pages with their plans. UserError for one in another place, or of artifacts that are not here."""
    plans = {str(file): plan for file, plan in shown_files(staging / PLANS)}
    found: dict[Path, Path] = {}
    for name in manifest["targets"]:
        if not (is_safe_name(name) and is_view_file(name) and name in manifest["files"] and name in plans):
            raise UserError(
                f"{archive}: `targets` of its manifest holds {_shown(name)}, which no export writes. {_NOTHING}"
            )
        try:
            shown = read_plan(plans[name])["artifacts"]
        except UserError:
            shown = [None]
        if not all(artifact in manifest["artifacts"] for artifact in shown):
            raise UserError(f"{archive}: the plan of {name} is damaged, or names artifacts of elsewhere. {_NOTHING}")
        found[Path(name)] = plans[name].relative_to(staging)
    return found


def _shown(value: object) -> str:
    """A value as a message repeats it: hostile ones are long, or move the cursor."""
    return repr(value)[:80]
