"""Which of several cluster jobs samples which prompts: each takes a few at a time, so that none waits for the slowest.

Jobs of one artifact (shards) see one file system and nothing else of each other. A portion of prompts belongs to the
job that made a link of its name first, which is atomic, on network file systems too. A job that was killed takes its
own portions again in its next attempt. What is sampled does not depend on who samples it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from selfdistill.run.job import Shard


class ShardQueue:
    """Portions of prompts that shards take in turn; `folder` is one that all of them see."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        # Shards of another number, from an earlier attempt, cut the prompts otherwise.
        self.folder = folder / f"taken-of-{shard.count}"
        self.shard = shard

    def portions(self, keys: Sequence[int], size: int, finished: Collection[int]) -> Iterator[list[int]]:
        """Places of the portions that this shard takes, one after the other; `keys` identify the prompts.

        Portions are the same for every shard: `size` prompts each. Those whose prompts are all in `finished` are left
        out. Every shard must be run: it alone finishes what it has taken.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(keys), size):
            places = list(range(start, min(start + size, len(keys))))
            is_done = all(keys[place] in finished for place in places)
            if not is_done and self._take(f"{keys[start]}-{len(places)}"):
                yield places

    def _take(self, name: str) -> bool:
        """Whether a portion is this shard's: nobody has taken it, or an earlier attempt of this shard has."""
        path = self.folder / name
        try:
            path.symlink_to(str(self.shard))  # A link is made with its content, or not at all.
        except FileExistsError:
            return os.readlink(path) == str(self.shard)
        return True
