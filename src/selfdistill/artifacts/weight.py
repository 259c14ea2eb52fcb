"""How much disk artifacts take, by kind of content."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from selfdistill.artifacts.store import Artifact

STATES, CHECKPOINTS, MODELS, COMPLETIONS, TABLES, RECORDS = (
    "resume states", "checkpoints", "base models", "completions", "other payload", "metrics, logs, records",
)  # fmt: skip


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; links are not followed, and hard links count once."""
    return sum(size for _, size in _files(folder, set()))


def weigh(artifacts: Iterable[Artifact]) -> Counter[tuple[str, str]]:
    """(stage, kind of content) -> bytes."""
    seen: set[tuple[int, int]] = set()
    weights: Counter[tuple[str, str]] = Counter()
    for artifact in artifacts:
        for path, size in _files(artifact.folder, seen):
            weights[artifact.stage, _kind(path)] += size
    return weights


def _files(folder: Path, seen: set[tuple[int, int]]) -> Iterable[tuple[tuple[str, ...], int]]:
    """(parts of the path below the folder, bytes) of every file that was not `seen`."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            info = path.lstat()
            if path.is_symlink() or (info.st_dev, info.st_ino) in seen:
                continue
            if info.st_nlink > 1:
                seen.add((info.st_dev, info.st_ino))
            yield path.relative_to(folder).parts, info.st_size


def _kind(parts: tuple[str, ...]) -> str:
    if parts[0] in ("state", "last_state"):
        return STATES
    if parts[0] != "payload":
        return RECORDS
    if parts[1] == "checkpoints":
        return CHECKPOINTS
    if parts[1] == "model":
        return MODELS
    return COMPLETIONS if parts[1].startswith("rollouts") else TABLES
