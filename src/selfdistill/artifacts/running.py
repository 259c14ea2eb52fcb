"""Whether something is being computed: asked before anything is removed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from pathlib import Path

from selfdistill.artifacts.lineage import provenance_path, read_attempts
from selfdistill.artifacts.lock import is_busy
from selfdistill.artifacts.store import Artifact
from selfdistill.schema.errors import UserError

#: A job on another machine whose log was silent for so long is taken for dead (seconds).
SILENCE = 3600
_SIGNS_OF_LIFE = ("log.txt", "metrics.jsonl", "state", "payload")
_SNAKEMAKE_LOCKS = Path(".snakemake/locks")


def is_workflow_running() -> bool:
    """Whether a Snakemake holds the lock of this folder; one that was killed holds it until `snakemake --unlock`."""
    return _SNAKEMAKE_LOCKS.is_dir() and any(_SNAKEMAKE_LOCKS.iterdir())


def is_running(folder: Path) -> bool:
    """Whether a job computes this artifact or a shard of it, here or on another machine.

    Not every file system shows the locks of other machines, so a job there is also known by its record and its log.
    """
    if is_busy(folder):
        return True
    records = [provenance_path(folder), *folder.glob("provenance-*-of-*.json")]
    last = [attempts[-1] for path in records if (attempts := read_attempts(path))]
    elsewhere = [a for a in last if a.get("finished") is None and a.get("host") not in (None, socket.gethostname())]
    return bool(elsewhere) and time.time() - _last_sign(folder) < SILENCE


def refuse_during_workflow() -> None:
    """UserError while a workflow runs: it has planned with what is sealed now, and would miss what is removed."""
    if is_workflow_running():
        raise UserError(
            "a workflow is running in this folder: wait until it has ended. If it was killed: snakemake --unlock"
        )


def refuse_running(artifacts: Iterable[Artifact]) -> None:
    """UserError if one of them is being computed."""
    for artifact in artifacts:
        if is_running(artifact.folder):
            raise being_computed(artifact)


def being_computed(artifact: Artifact) -> UserError:
    return UserError(f"{artifact.name} is being computed now: wait for its job, or stop it.")


def _last_sign(folder: Path) -> float:
    """Time of the last change of what a job changes while it runs."""
    paths = [path for name in _SIGNS_OF_LIFE if (path := folder / name).exists()]
    return max((path.stat().st_mtime for path in paths), default=0.0)
