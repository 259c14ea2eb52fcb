"""Resume states: everything that decides the future, saved atomically, verified when read.

    state/step-N/   tensors.pt (policy, optimiser, teacher, generators)   progress.json   digests.json
                    shards/ instead of tensors.pt where weights are sharded: each rank writes its part, and any
                    number of ranks can read them again

A run killed at any moment and resumed ends in the same bytes as one never interrupted (one CPU thread, float32).
The newest state that verifies is loaded; a damaged one is skipped with a warning. The two newest are kept.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from selfdistill.files import move_into_place, read_json, sha256_file
from selfdistill.schema.errors import UserError
from selfdistill.training.distributed import World

_LOG = logging.getLogger(__name__)
_KEPT = 2
_PROGRESS, _DIGESTS = "progress.json", "digests.json"
#: What holds the tensors: a file of one process, or a folder of the ranks' parts.
TENSORS, SHARDED = "tensors.pt", "shards"


@dataclass
class Progress:
    """Counters of the run; `method` is what the method carries from step to step."""

    step: int = 0
    steps_without_signal: int = 0
    method: dict[str, Any] = field(default_factory=dict)


class NewState:
    """The state `folder/step-N` while it is written: it has that name once it is complete.

    Every rank makes one. What the ranks write goes into `partial`; then the main rank calls `complete`.
    """

    def __init__(self, folder: Path, progress: Progress, world: World) -> None:
        self.target = folder / f"step-{progress.step}"
        self.partial = folder / f".{self.target.name}.partial"
        if world.is_main:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            (self.partial / _PROGRESS).write_text(json.dumps(vars(progress)))
        world.barrier()

    def complete(self, known: Mapping[str, str] = MappingProxyType({})) -> None:
        """Flush it to disk, give it its name, and delete older states. `known`: digests of some of its files."""
        digests = {name: known.get(name) or sha256_file(self.partial / name) for name in _files(self.partial)}
        (self.partial / _DIGESTS).write_text(json.dumps(digests))
        move_into_place(self.partial, self.target)
        for old in _states(self.target.parent)[_KEPT:]:
            shutil.rmtree(old)


def newest_state(folder: Path, world: World) -> Path | None:
    """The newest intact state, or None when there is none at all. Collective: the ranks share the checking.

    Raises UserError when there are states but none is intact: training must not silently start over.
    """
    states = _states(folder)
    for state in states:
        faults = [fault for fault in world.gather({world.rank: _fault(state, world)}) if fault is not None]
        if not faults:
            return state
        _LOG.warning("resume state %s is damaged (%s); using the one before it", state, faults[0])
    if states:
        raise UserError(f"{folder}: no intact resume state is left. Move this folder away to train from the beginning.")
    return None


def read_progress(state: Path) -> Progress:
    """Counters of a state. Others are ignored: states of earlier versions held sampled rollouts, too."""
    saved = read_json(state / _PROGRESS)
    return Progress(saved["step"], saved["steps_without_signal"], saved.get("method", {}))


def is_sharded(state: Path) -> bool:
    """Whether the ranks of a sharded run wrote it; otherwise one process did."""
    return (state / SHARDED).is_dir()


def generator_states() -> dict[str, Any]:
    """States of torch's generators; sampling and data order do not use them (they are functions of the seed)."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _states(folder: Path) -> list[Path]:
    """Finished states, newest first."""
    found = [path for path in folder.glob("step-*") if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _files(state: Path) -> list[str]:
    return sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file())


def _fault(state: Path, world: World) -> str | None:
    """Why a state cannot be used, as far as this rank's share of the files shows; or None."""
    return damage(state, world.select)


def damage(state: Path, select: Callable[[list[str]], list[str]] = lambda names: names) -> str | None:
    """Why a state cannot be used, or None; `select` says which of its files are hashed."""
    try:
        digests = read_json(state / _DIGESTS)
        if set(digests) != set(_files(state)) - {_DIGESTS}:
            return "files are missing or were added"
        for name in select(sorted(digests)):
            if sha256_file(state / name) != digests[name]:
                return f"{name} does not match its digest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
