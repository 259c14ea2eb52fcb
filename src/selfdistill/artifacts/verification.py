"""Whether an artifact is what was made: files, manifest, seal, spec and the record of its attempts.

Artifacts that were made before there was a digest for something are readable; what cannot be checked is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from selfdistill.artifacts.lineage import (
    damage_to_record,
    has_digest,
    last_attempt,
    provenance_path,
    read_attempts,
    sealed_manifest,
)
from selfdistill.artifacts.provenance import NAMES_FILE
from selfdistill.artifacts.store import Artifact, find, manifest_digest
from selfdistill.files import pretty_json, sha256_file
from selfdistill.schema.errors import UserError

#: Readers hash files up to this size before they read them, and of larger ones compare the size (bytes).
check_limit: ContextVar[int] = ContextVar("check_limit", default=256_000_000)


@dataclass
class Findings:
    """`problems`: what differs from what was made. `unchecked`: what an older artifact has no digest of."""

    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def is_finished(folder: Path) -> bool:
    """Whether an artifact is or was finished, as far as anything in its folder still says so."""
    attempt = last_attempt(folder)
    said = attempt.get("sealed") and not attempt.get("discarded")
    return bool(said) or any((folder / name).is_file() for name in ("manifest.json", ".sealed.json"))


def verify(folder: Path) -> Findings:
    """Everything that is wrong with a finished artifact."""
    artifact, findings = Artifact(folder), Findings()
    try:
        artifact = Artifact.open(folder)
    except UserError as error:
        findings.problems.append(str(error))
    findings.problems += _records(artifact, findings.unchecked)
    if not artifact.is_sealed:
        findings.problems.append(f"{artifact.name}: manifest.json is missing; the next run of its target restores it")
        return findings
    try:
        findings.problems += [*changed_content(artifact), *changed_inputs(artifact)]
    except UserError as error:
        findings.problems.append(str(error))
    return findings


def _records(artifact: Artifact, unchecked: list[str]) -> Iterator[str]:
    """Manifest, seal and provenance vouch for each other."""
    for path in sorted({provenance_path(artifact.folder), *artifact.folder.glob("provenance-*-of-*.json")}):
        damage = damage_to_record(path)
        if damage:
            yield f"{artifact.name}: {path.name} {damage}"
        elif not has_digest(path):
            unchecked.append(f"{artifact.name}: {path.name}")
        yield from _changed_patches(artifact, path)
    names = artifact.folder / NAMES_FILE
    recorded_names = last_attempt(artifact.folder).get("names")
    if recorded_names and not (names.is_file() and names.read_bytes() == pretty_json(recorded_names).encode()):
        yield f"{artifact.name}: {NAMES_FILE} is missing or has changed"
    if not artifact.seal_path.is_file():
        yield f"{artifact.name}: .sealed.json is missing, so a lost manifest could not be restored"
    recorded = sealed_manifest(read_attempts(provenance_path(artifact.folder)))
    for path in (path for path in (artifact.manifest_path, artifact.seal_path) if path.is_file()):
        if recorded not in (None, sha256_file(path)):
            yield f"{artifact.name}: {path.name} is not the one that was written when it was finished"
    if artifact.is_sealed and artifact.seal_path.is_file() and recorded is None:
        unchecked.append(f"{artifact.name}: manifest.json")
        if artifact.manifest_path.read_bytes() != artifact.seal_path.read_bytes():
            yield f"{artifact.name}: manifest.json and .sealed.json differ, and are copies of each other"


def _changed_patches(artifact: Artifact, record: Path) -> Iterator[str]:
    """Patches of uncommitted code; the last attempt that names one has written it."""
    digests = {attempt.get("changes"): attempt.get("changes_sha256") for attempt in read_attempts(record)}
    for name, digest in digests.items():
        path = artifact.folder / str(name)
        if name and digest and not (path.is_file() and sha256_file(path) == digest):
            yield f"{artifact.name}: {name} (uncommitted code) is missing or has changed"


def changed_content(artifact: Artifact) -> Iterator[str]:
    """Files that are missing, have other bytes than the manifest says, or are not in it."""
    files = artifact.manifest["files"]
    for name, entry in files.items():
        path = artifact.folder / name
        if not path.is_file():
            yield f"{artifact.name}: {name} is missing"
        elif path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
            yield f"{artifact.name}: {name} has changed"
    extra = {str(path.relative_to(artifact.folder)) for path in artifact.content()} - set(files)
    yield from (f"{artifact.name}: {name} is not in the manifest" for name in sorted(extra))


def changed_inputs(artifact: Artifact) -> Iterator[str]:
    """Inputs that are gone or were made again since."""
    for role, entry in artifact.manifest["inputs"].items():
        folder = find(entry["id"], artifact.root)
        if folder is None or not Artifact(folder).is_sealed:
            yield f"{artifact.name}: input {role} ({entry['id']}) is gone"
        elif manifest_digest(Artifact(folder)) != entry["manifest"]:
            yield f"{artifact.name}: built from an earlier realisation of {role} ({entry['id']})"


def check_manifest(artifact: Artifact) -> None:
    """UserError if the manifest is not the one that was written when the artifact was finished, as far as is known."""
    recorded = sealed_manifest(read_attempts(provenance_path(artifact.folder)))
    if recorded not in (None, manifest_digest(artifact)):
        raise UserError(
            f"{artifact.manifest_path} is not the one that was written: see `selfdistill verify {artifact.key}`."
        )


def check_file(folder: Path, name: str) -> Path:
    """The path of a file of a finished artifact; UserError if it is not what the manifest says (see `check_limit`)."""
    _check_file(folder.absolute(), name, check_limit.get())
    return folder / name


@cache
def _check_file(folder: Path, name: str, limit: int) -> None:
    artifact = Artifact(folder)
    path, entry = folder / name, artifact.manifest["files"].get(name)
    if not path.is_file():
        raise UserError(f"{path} is missing: discard its artifact and run again.")
    size = path.stat().st_size
    if entry is None or size != entry["size"] or (size <= limit and sha256_file(path) != entry["sha256"]):
        raise UserError(
            f"{path} is not what was made: see `selfdistill verify {artifact.key}`, discard it and run again."
        )
