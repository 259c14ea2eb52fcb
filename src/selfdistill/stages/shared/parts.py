"""Graded completions, saved as they finish: part files in an artifact's state/, merged at the end.

A part holds all completions of some prompts. One or several processes add parts in the order in which prompts finish;
the result has the order of the prompts and does not depend on the parts. Reading and writing need memory for one group
of rows at a time. The name of a part holds its digest: a damaged part does not count, its prompts are sampled again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfdistill.artifacts.tables import COLUMNS, ROLLOUTS
from selfdistill.files import move_into_place, replacing, sha256_file
from selfdistill.run.job import Shard

#: Rows of the result that are compressed at a time; a group ends with a prompt.
_GROUP_ROWS = 8192
#: `1-of-2-000007-DIGEST`; parts of earlier versions have no digest.
_NAME = re.compile(r".+-(?P<number>[0-9]{6})(?:-(?P<digest>[0-9a-f]{16}))?")

_LOG = logging.getLogger(__name__)


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
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(path) for path in self.folder.glob(f"{self.shard}-*.arrow")), default=0)
        partial = self.folder / f".{self.shard}-{number:06d}.part"
        table = pa.Table.from_pylist(
            [{name: row[name] for name in self.schema.names} for row in rows], schema=self.schema
        )
        with pa.ipc.new_file(partial, self.schema) as writer:
            writer.write_table(table)
        digest = sha256_file(partial)[:16]
        move_into_place(partial, self.folder / f"{self.shard}-{number:06d}-{digest}.arrow")

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
        """The intact parts as memory maps."""
        paths = [path for path in sorted(self.folder.glob("*.arrow")) if _is_intact(path)]
        return [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]


def _number(path: Path) -> int:
    name = _NAME.fullmatch(path.stem)
    return int(name["number"]) if name else 0


def _is_intact(path: Path) -> bool:
    name = _NAME.fullmatch(path.stem)
    if name and name["digest"] in (None, sha256_file(path)[:16]):
        return True
    _LOG.warning("%s is damaged: its prompts are sampled again", path)
    return False


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
