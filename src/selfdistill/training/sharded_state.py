"""Resume states of sharded weights: copied to main memory while all wait, and written while training goes on.

    copy (all wait)  ->  each rank writes, flushes and hashes its file  ->  rank 0 gives the state its name

torch's distributed checkpoint does it in a thread of each rank. The threads talk in a group of their own, so they never
meet the collectives of training. An error of any rank reaches all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from selfdistill.files import sha256_file
from selfdistill.training.distributed import World

#: Gets the digests of the ranks' files by name.
OnWritten = Callable[[dict[str, str]], None]


class ShardedStateWriter:
    """Writes one state at a time. Its methods are collective: every rank calls them in the same order."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group = world.new_cpu_group()
        # Without pinned memory: the stager pins each tensor where malloc put it. Small ones share a page, and a driver
        # does not pin a page twice (error 712). An ordinary copy takes a few seconds longer.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
            )
        )
        self._underway: Future[Any] | None = None

    def start(self, folder: Path, tensors: dict[str, Any], on_written: OnWritten) -> None:
        """Copy the tensors, and have the copy written to `folder`; then rank 0 calls `on_written`, in a thread.

        The copy keeps its memory, and the next one uses it again: so it waits for the state before it.
        """
        self.wait()
        self._underway = checkpoint.async_save(
            tensors,
            storage_writer=_HashingWriter(folder, on_written),
            process_group=self._group,
            async_stager=self._stager,
        )

    def check(self) -> None:
        """Raise on all ranks, without waiting, if the state that is being written has failed."""
        underway = self._underway
        if underway is not None and self.world.any(underway.done() and underway.exception() is not None):
            self.wait()

    def wait(self) -> None:
        """Wait for the state that is being written, if any. Raises what its writing raised, on all ranks the same."""
        underway, self._underway = self._underway, None
        try:
            if underway is not None:
                underway.result()
        except CheckpointException as error:
            cause, _ = error.failures[min(error.failures)]
            raise cause from error


class _HashingWriter(checkpoint.FileSystemWriter):
    """Each rank also hashes its file, and rank 0 gets all digests when the last rank has written."""

    def __init__(self, folder: Path, on_written: OnWritten) -> None:
        # 0: nothing is on a GPU any more. Otherwise the writing thread would use one, and a new thread's is GPU 0.
        super().__init__(folder, per_thread_copy_ahead=0)
        self._folder, self._on_written = folder, on_written

    def write_data(self, plan: Any, planner: Any) -> torch.futures.Future[Any]:
        written = super().write_data(plan, planner).wait()
        names = {result.storage_data.relative_path for result in written}
        done: torch.futures.Future[Any] = torch.futures.Future()
        done.set_result((written, {name: sha256_file(self._folder / name) for name in names}))
        return done

    def finish(self, metadata: Metadata, results: list[Any]) -> None:
        super().finish(metadata, [written for written, _ in results])
        self._on_written({name: digest for _, digests in results for name, digest in digests.items()})


def sharded_tensors(model: Any, adamw: torch.optim.Optimizer, weights: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """What a sharded state holds: the weights by kind and name, the optimiser and the random generator."""
    optimiser = get_optimizer_state_dict(model, adamw)
    return {**weights, "optimiser": optimiser, "generator": torch.get_rng_state()}


def read_sharded_state(
    folder: Path, model: Any, adamw: torch.optim.Optimizer, weights: dict[str, dict[str, Tensor]]
) -> None:
    """Read in place what any number of ranks wrote."""
    state = sharded_tensors(model, adamw, weights)
    checkpoint.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(model, adamw, state["optimiser"])
    torch.set_rng_state(state["generator"])
