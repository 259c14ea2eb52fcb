"""Graded completions, saved as they finish: part files in an artifact's state/, merged at the end.

A part holds all completions of some prompts. One or several processes add parts in the order in which prompts finish;
the result has the order of the prompts and does not depend on the parts. Reading and writing need memory for one group
of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfdistill.artifacts.tables import COLUMNS, ROLLOUTS
from selfdistill.files import replacing
from selfdistill.run.job import Shard

#: Rows of the result that are compressed at a time; a group ends with a prompt.
_GROUP_ROWS = 8192


class PartFiles:
    """The part files of one checkpoint; file names begin with the `shard` that wrote them.

    `key`: the column that identifies a prompt.
    """

    def __init__(self, folder: Path, shard: Shard, columns: Sequence[str] = ROLLOUTS, *, key: str = "row_id") -> None:
        self.folder = folder
        self.key = key
        self.shard = shard
        self.schema = pa.schema([(name, COLUMNS[name]) for name in columns])

    def finished(self) -> set[int]:
        """Keys of the finished prompts of all shards."""
        return {key for table in self._tables() for key in table[self.key].unique().to_pylist()}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one part: all completions of one or more prompts."""
        if not rows:
            return
        used = [int(path.stem.rsplit("-", 1)[1]) for path in self.folder.glob(f"{self.shard}-*.arrow")]
        path = self.folder / f"{self.shard}-{max(used, default=0) + 1:06d}.arrow"
        table = pa.Table.from_pylist(
            [{name: row[name] for name in self.schema.names} for row in rows], schema=self.schema
        )
        with replacing(path) as partial, pa.ipc.new_file(partial, self.schema) as writer:
            writer.write_table(table)

    def groups(self, keys: Iterable[int]) -> Iterator[pa.Table]:
        """The completions of each prompt, in this order. KeyError for a prompt without completions."""
        places: dict[int, tuple[pa.Table, int, int]] = {}
        for table in self._tables():
            start = 0
            encoded = pc.run_end_encode(table[self.key].combine_chunks())
            for end, key in zip(encoded.run_ends.to_pylist(), encoded.values.to_pylist(), strict=True):
                # Two shards may have sampled the same prompt, if the number of shards was changed meanwhile.
                places.setdefault(key, (table, start, end - start))
                start = end
        for key in keys:
            table, start, length = places[key]
            yield table.slice(start, length)

    def _tables(self) -> list[pa.Table]:
        """The parts as memory maps."""
        return [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(self.folder.glob("*.arrow"))]


def merge(path: Path, all_parts: Sequence[PartFiles], row_ids: Sequence[int]) -> None:
    """Write rollouts.parquet: for each checkpoint's parts, the completions of all prompts in order."""
    with replacing(path) as partial, pq.ParquetWriter(partial, all_parts[0].schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        rows = 0
        for group in (group for parts in all_parts for group in parts.groups(row_ids)):
            waiting.append(group)
            rows += len(group)
            if rows >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting, rows = [], 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
