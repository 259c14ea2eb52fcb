"""Training processes (ranks) that run one engine together: all must do the same things in the same order.

The first of them, the leader, decides what is sampled and hands the completions on; the others follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch

Item = TypeVar("Item")


class EngineRanks:
    """`size` consecutive ranks of the process group; a `size` of 1 is an engine of this process alone.

    Every rank of the process group must create it. `timeout_seconds`: the longest wait for the other ranks.
    """

    def __init__(self, size: int = 1, timeout_seconds: int = 21600) -> None:
        self.is_leader, self.group = True, None
        if size > 1:
            # On the CPU: a message of a few bytes must not wait for the GPU's queue.
            self.group, _ = torch.distributed.new_subgroups(
                size, timeout=timedelta(seconds=timeout_seconds), backend="gloo"
            )
            self.is_leader = torch.distributed.get_group_rank(self.group, torch.distributed.get_rank()) == 0

    def decide(self, choose: Callable[[], Item]) -> Item:
        """What the leader chooses; only the leader is asked. Collective."""
        choice = [choose() if self.is_leader else None]
        if self.group is not None:
            torch.distributed.broadcast_object_list(choice, group=self.group, group_src=0)
        return choice[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        if self.group is None:
            return flag
        tensor = torch.tensor(flag, dtype=torch.uint8)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(tensor.item())
