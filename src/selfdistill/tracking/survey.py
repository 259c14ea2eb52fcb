"""What is on disk: every artifact that MLflow should show, and a fingerprint that changes when any of them does.

Only small files are read: most calls of `track` end here, without importing MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from selfdistill.artifacts.lineage import PROVENANCE_FILE, closure, current_attempts, parse_attempts
from selfdistill.artifacts.lock import is_locked, lock_path
from selfdistill.artifacts.store import Artifact, all_artifacts
from selfdistill.files import canonical_json, sha256_file, sha256_text
from selfdistill.schema.errors import UserError

#: Raised when all runs in MLflow must be written again although their artifacts are the same.
PROJECTION = 3
_SIDECARS = ("spec.json", "manifest.json", PROVENANCE_FILE)


@dataclass(frozen=True)
class Entry:
    """An artifact that is sealed, or has metrics already."""

    artifact: Artifact
    sidecars: dict[str, str]
    attempts: list[dict[str, Any]]
    is_running: bool
    #: All entries of the survey by id, this one included.
    known: Mapping[str, Entry] = field(repr=False, compare=False)

    @property
    def stage(self) -> str:
        return self.artifact.stage

    @property
    def id(self) -> str:
        """`stage/key`."""
        return self.artifact.id

    @property
    def input_ids(self) -> dict[str, str]:
        return self.artifact.input_ids

    def upstream(self, role: str) -> Entry | None:
        """The entry that serves as an input; None if there is no such input, or no entry for it."""
        return self.known.get(self.input_ids.get(role, ""))

    @property
    def manifest_sha256(self) -> str | None:
        """Digest of the manifest: which realisation of the spec this is; None while it is not sealed."""
        return self.sidecars.get("manifest.json")

    @property
    def params(self) -> dict[str, Any]:
        return self.artifact.frozen_spec["params"]

    @property
    def summary(self) -> dict[str, Any]:
        return self.artifact.summary if self.manifest_sha256 else {}

    @property
    def status(self) -> str:
        if self.manifest_sha256:
            return "FINISHED"
        return "RUNNING" if self.is_running else "KILLED"

    @property
    def provenance(self) -> dict[str, Any]:
        """The last attempt: the one that sealed it, or the one that is running."""
        return self.attempts[-1] if self.attempts else {}

    @cached_property
    def started_ms(self) -> int:
        """Start of the first attempt at this result; the time of spec.json if no attempt is recorded."""
        first = self.attempts[0].get("started") if self.attempts else None
        return _milliseconds(first) or int((self.artifact.folder / "spec.json").stat().st_mtime * 1000)

    @cached_property
    def finished_ms(self) -> int | None:
        """When it was sealed; None before."""
        if not self.manifest_sha256:
            return None
        return _milliseconds(self.provenance.get("finished")) or int(self.artifact.manifest_path.stat().st_mtime * 1000)


@dataclass(frozen=True)
class Survey:
    """All entries by id, tables and reports, plans, and artifacts that could not be read."""

    results: Path
    entries: dict[str, Entry]
    views: dict[str, str]
    plans: dict[str, str]
    problems: tuple[str, ...]

    @classmethod
    def of(cls, root: Path) -> Survey:
        """Read `root` (results/artifacts) and the views and plans beside it."""
        results = root.parent
        entries: dict[str, Entry] = {}
        problems: list[str] = []
        for artifact in all_artifacts(root):
            try:
                entry = _look_at(artifact, entries)
            except UserError as error:
                problems.append(str(error))
                continue
            if entry is None:
                continue
            if entry.id in entries:
                problems.append(f"two directories hold {entry.id}: {artifact.name} is left out.")
            else:
                entries[entry.id] = entry
        files = [*results.glob("*.html"), *results.glob("reports/*.html"), *results.glob("*/*.csv")]
        return cls(results, entries, _digests(files, results), _digests(results.glob("plans/*/*/plan.json"), results),
                   tuple(problems))  # fmt: skip

    @classmethod
    def of_artifact(cls, folder: Path) -> Survey:
        """One artifact and everything upstream of it, without views and plans. Empty before it has started."""
        artifact = Artifact.open(folder)
        entries: dict[str, Entry] = {}
        for item in closure([artifact]):
            entry = _look_at(item, entries)
            if entry is not None:
                entries[entry.id] = entry
        return cls(artifact.root.parent, entries if artifact.id in entries else {}, {}, {}, ())

    @property
    def fingerprint(self) -> str:
        """Digest of everything that goes to MLflow, and of what writes it: a new MLflow upgrades the store."""
        state = {
            entry.id: [entry.artifact.name, entry.sidecars, _size(entry.artifact.metrics), entry.status]
            for entry in self.entries.values()
        }
        code = {path.name: sha256_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))}
        return sha256_text(canonical_json([metadata.version("mlflow"), code, state, self.views, self.plans]))


def _look_at(artifact: Artifact, known: Mapping[str, Entry]) -> Entry | None:
    """None for an artifact that has not started; UserError for one whose spec or manifest was changed."""
    running = not artifact.is_sealed and is_locked(lock_path(artifact.folder))
    if not (artifact.is_sealed or running or _size(artifact.metrics)):
        return None
    opened = Artifact.open(artifact.folder)
    texts = {
        name: path.read_text(encoding="utf-8", errors="replace")
        for name in _SIDECARS
        if (path := opened.folder / name).is_file()
    }
    if opened.is_sealed:
        _ = opened.manifest
    attempts = current_attempts(parse_attempts(texts.get(PROVENANCE_FILE, "")))
    return Entry(opened, {name: sha256_text(text) for name, text in texts.items()}, attempts, running, known)


def _digests(paths: Any, results: Path) -> dict[str, str]:
    return {path.relative_to(results).as_posix(): sha256_file(path) for path in sorted(paths) if path.is_file()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _milliseconds(text: str | None) -> int | None:
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else None
