"""The lineage of artifacts on this machine as data: what they were made from, and what was made from them.

Nothing here fails because something is gone: an input whose folder was deleted is an item with the state `missing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selfdistill.artifacts.continuation import CONTINUED
from selfdistill.artifacts.lineage import closure, descendants, last_attempt, provenance_path, read_attempts
from selfdistill.artifacts.store import ROOT, Artifact, all_artifacts, manifest_digest
from selfdistill.schema.errors import UserError

#: What an attempt records about the code, and about the environment in which it ran.
CODE = ("commit", "dirty", "changes")
ENVIRONMENT = ("python", "platform", "libraries", "locks", "packages", "devices", "container", "host", "slurm_job")


def state_of(artifact: Artifact) -> str:
    """`sealed`, `started` (has a resume state), `planned` (has a spec), or `-` (not on this machine)."""
    if artifact.is_sealed:
        return "sealed"
    if artifact.state.is_dir():
        return "started"
    return "planned" if (artifact.folder / "spec.json").is_file() else "-"


@dataclass(frozen=True)
class Item:
    """An artifact by its id, whether or not it is on this machine."""

    id: str
    known: Mapping[str, Artifact]

    @property
    def artifact(self) -> Artifact | None:
        return self.known.get(self.id)

    @property
    def stage(self) -> str:
        return self.id.split("/")[0]

    @property
    def name(self) -> str:
        """`stage/slug-key`, or `stage/key` of a missing one."""
        return self.artifact.name if self.artifact else self.id

    @property
    def state(self) -> str:
        if self.artifact is None:
            return "missing"
        return state_of(self.artifact) if self._spec and self._manifest is not None else "damaged"

    @property
    def input_ids(self) -> dict[str, str]:
        return self._spec.get("inputs", {})

    def upstream(self, role: str) -> Item:
        return Item(self.input_ids[role], self.known)

    @cached_property
    def attempt(self) -> dict[str, Any]:
        """The attempt that made the artifact, or the latest one; empty if there is no record."""
        return last_attempt(self.artifact.folder) if self.artifact else {}

    @property
    def pins(self) -> list[dict[str, str]]:
        """External files and models in the spec: repository, revision, file, sha256."""
        return list(_pins(self.params))

    @property
    def params(self) -> dict[str, Any]:
        """The settings in the spec; empty if it is not known."""
        return self._spec.get("params", {})

    def record(self) -> dict[str, Any]:
        """Everything that this machine knows about the artifact, as JSON."""
        record: dict[str, Any] = {"id": self.id, "name": self.name, "stage": self.stage, "state": self.state}
        if self.artifact is None:
            return record
        return record | {
            "folder": str(self.artifact.folder),
            "spec": self._spec,
            "inputs": self.input_ids,
            "pins": self.pins,
            "remade_inputs": self.remade_inputs,
            "manifest": self.digest,
            "files": (self._manifest or {}).get("files"),
            "summary": (self._manifest or {}).get("summary"),
            "started": self.attempt.get("started"),
            "finished": self.attempt.get("finished"),
            "attempts": len(read_attempts(provenance_path(self.artifact.folder))),
            "code": {name: self.attempt.get(name) for name in CODE},
            "environment": {name: self.attempt.get(name) for name in ENVIRONMENT},
            "runtime": self.attempt.get("runtime"),
            **({CONTINUED: self.attempt[CONTINUED]} if CONTINUED in self.attempt else {}),
        }

    @cached_property
    def _spec(self) -> dict[str, Any]:
        """Empty if spec.json is damaged or was changed: what it says of the artifact is then not known to be true."""
        try:
            return Artifact.open(self.artifact.folder).frozen_spec if self.artifact else {}
        except (UserError, OSError):
            return {}

    @cached_property
    def _manifest(self) -> dict[str, Any] | None:
        """Empty if the artifact is not finished; None if the manifest is damaged."""
        if self.artifact is None or not self.artifact.is_sealed:
            return {}
        try:
            return self.artifact.manifest
        except UserError:
            return None

    @property
    def remade_inputs(self) -> list[str]:
        """Roles of inputs that were made again since: the artifact was made from other bytes than are there now."""
        recorded = (self._manifest or {}).get("inputs", {})
        return [
            role
            for role, entry in recorded.items()
            if Item(entry["id"], self.known).digest not in (None, entry["manifest"])
        ]

    @property
    def digest(self) -> str | None:
        """SHA-256 of the manifest; None if the artifact is not finished here."""
        return manifest_digest(self.artifact) if self.artifact and self.artifact.is_sealed else None


@dataclass(frozen=True)
class Lineage:
    """The artifacts that a question is about, with everything upstream (first) and downstream (nearest first)."""

    subjects: list[Item]
    upstream: list[Item]
    downstream: list[Item]

    @classmethod
    def of(cls, ids: Iterable[str], root: Path = ROOT) -> Lineage:
        """The lineage of `stage/key` ids, from every artifact under `root`."""
        everything = all_artifacts(root)
        known = {artifact.id: artifact for artifact in everything}
        subjects = [Item(identity, known) for identity in dict.fromkeys(ids)]
        asked = {item.id for item in subjects}
        upstream = [item for item in closure(subjects) if item.id not in asked]
        downstream = descendants(subjects, [Item(identity, known) for identity in known])
        return cls(subjects, upstream, [item for item in downstream if item.id not in asked])

    @property
    def items(self) -> list[Item]:
        return [*self.upstream, *self.subjects, *self.downstream]

    def as_json(self) -> dict[str, Any]:
        """Ids of the subjects, of what they were made from and of what was made from them, and a record of each."""
        return {
            "subjects": [item.id for item in self.subjects],
            "made_from": [item.id for item in self.upstream],
            "made_into": [item.id for item in self.downstream],
            "artifacts": {item.id: item.record() for item in self.items},
        }


def _pins(value: Any) -> Iterator[dict[str, str]]:
    """Mappings with a revision or a sha256, at any depth."""
    if isinstance(value, list):
        for entry in value:
            yield from _pins(entry)
    elif isinstance(value, dict):
        if value.get("revision") or value.get("sha256"):
            yield {name: text for name, text in value.items() if isinstance(text, str)}
        else:
            for entry in value.values():
                yield from _pins(entry)
