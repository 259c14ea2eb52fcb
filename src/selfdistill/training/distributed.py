"""Several training processes (ranks) that hold the same weights and divide the work of a step.

Each rank samples whole groups, which are then gathered on all of them. `micro_batches.py` deals the rows to the ranks.
Gradients are summed, not averaged, since every loss coefficient already has the denominator of the whole mini-batch.
With one process nothing here communicates. Weights are replicated, or sharded over all ranks or over those of a node
(`training/sharding.py`); then every rank must do the same number of forward and backward passes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import Sharding, StageRuntime

Item = TypeVar("Item")


def launched_processes() -> int:
    """Processes of this training on all nodes, as the launcher says; known before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class World:
    """All processes of this training, as torchrun, accelerate or srun started them; `sharding` is that of the weights.

    It gives this process its GPU, so it comes before anything is loaded: "cuda" is GPU 0 of the node until then.
    `timeout_seconds`: the longest wait for the other processes.
    """

    def __init__(self, device: str, *, sharding: Sharding = "none", timeout_seconds: int = 21600) -> None:
        self.rank, self.size = 0, launched_processes()
        self._queues = 0
        self.sharding = sharding
        self.is_sharded = sharding != "none" and self.size > 1
        self.device = torch.device(device)
        self._timeout = timedelta(seconds=timeout_seconds)
        if self.size > 1:
            from accelerate import PartialState

            # NCCL's own limit is ten minutes, less than a rank may wait for the slowest sampler.
            state = PartialState(cpu=device == "cpu", timeout=self._timeout)
            self.rank, self.size, self.device = state.process_index, state.num_processes, state.device

    @classmethod
    def of(cls, runtime: StageRuntime) -> World:
        """The processes that config/runtime.yaml asks for. UserError where training was started with another number."""
        world = cls(
            runtime.device,
            sharding=runtime.sharding,
            timeout_seconds=runtime.collective_timeout_seconds,
        )
        if world.local_size != runtime.processes:
            raise UserError(
                f"runtime: processes = {runtime.processes}, but training was started with {world.local_size}: start "
                "it through the launcher (selfdistill.run.launch), or set processes: 1."
            )
        if runtime.sharding == "hybrid" and world.local_size == 1 < world.size:
            raise UserError(
                "runtime: sharding: hybrid spreads weights over the processes of a node, and each node has one: set "
                "processes to the GPUs of a node, or another sharding."
            )
        return world

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and reports."""
        return self.rank == 0

    @property
    def is_in_step(self) -> bool:
        """Whether all ranks do the same number of passes; replicas have as many micro-batches as their rows fill."""
        return self.is_sharded or self.size == 1

    @property
    def local_size(self) -> int:
        """Processes on this node: all of them, unless a launcher across nodes says otherwise."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) if self.size > 1 else 1

    @property
    def has_copies(self) -> bool:
        """Whether each node has a copy of the weights, sharded over its ranks."""
        return self.is_sharded and self.sharding == "hybrid" and self.local_size < self.size

    @functools.cached_property
    def mesh(self) -> DeviceMesh:
        """The ranks over which weights are sharded: all [size], or with copies [nodes, ranks of a node]. Collective."""
        kind = self.device.type
        if not self.has_copies:
            return init_device_mesh(kind, (self.size,))
        by_node = torch.arange(self.size).view(-1, self.local_size)
        # Groups that a mesh makes by itself have NCCL's own time limit.
        groups = [
            torch.distributed.new_subgroups_by_enumeration(ranks.tolist(), timeout=self._timeout)[0]
            for ranks in (by_node.t(), by_node)
        ]
        return DeviceMesh.from_group(groups, kind, by_node, mesh_dim_names=("replicate", "shard"))

    def select(self, items: Sequence[Item]) -> list[Item]:
        """This rank's items: every size-th."""
        return list(items[self.rank :: self.size])

    def pull(self, items: Sequence[Item]) -> Iterator[Item]:
        """Items as this rank asks for them: each goes to one rank, the next one to the rank that asks first.

        Every rank must call it with the same items, in the same order of calls.
        """
        self._queues += 1
        return self._pull(items, f"selfdistill/queue-{self._queues}") if self.size > 1 else iter(items)

    def _pull(self, items: Sequence[Item], name: str) -> Iterator[Item]:
        # The store of the launcher's rendezvous: a counter there gives each index to one rank.
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)
        while (index := store.add(name, 1) - 1) < len(items):
            yield items[index]

    def gather(self, results: Mapping[int, Item]) -> list[Item]:
        """The results of all ranks, each keyed by its place, in the order of places; on every rank."""
        parts: list[Mapping[int, Item]] = [results] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(parts, dict(results))
        found = {place: result for part in parts for place, result in part.items()}
        return [found[place] for place in sorted(found)]

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: ranks must agree before one of them leaves the common path."""
        if self.size == 1:
            return flag
        tensor = torch.tensor([float(flag)], device=self.device)
        torch.distributed.all_reduce(tensor)
        return bool(tensor.item())

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            torch.distributed.barrier()

    def new_cpu_group(self) -> ProcessGroup:
        """A group of all ranks for what lies in main memory, which a thread may use beside training. Collective."""
        return torch.distributed.new_group(backend="gloo", timeout=self._timeout)
