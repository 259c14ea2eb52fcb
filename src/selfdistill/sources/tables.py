"""One reader for every table: problems, benchmarks, completions; a file, a folder, a pipe or standard input.

Parquet, JSON (objects or one array of them), JSON Lines and CSV, also compressed (.gz, .zst). The ending of the name
says which; where there is none (standard input, `<(command)`), the content does. Rows come in batches bounded by bytes,
so memory grows neither with the file nor with its row groups. A folder must hold one split, or one must be named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa

from selfdistill.schema.errors import UserError
from selfdistill.sources.columnar import read_parquet
from selfdistill.sources.folders import read_folder
from selfdistill.sources.streams import PACKED, Source
from selfdistill.sources.text_tables import Record, looks_like_csv, looks_like_json, read_csv, read_json

_JSON = (".json", ".jsonl", ".ndjson")
ENDINGS = (".parquet", *_JSON, ".csv")


def read_table(path: str | Path, fields: Collection[str] = (), split: str | None = None) -> Iterator[Record]:
    """Rows in file order, one by one; otherwise as `read_batches`."""
    for batch in read_batches(path, fields, split):
        yield from batch


def read_batches(path: str | Path, fields: Collection[str] = (), split: str | None = None) -> Iterator[list[Record]]:
    """Batches of rows in file order; of a pipe, as soon as its writer has written them.

    `fields` are the dotted paths that are needed: of parquet that has them all, no other column is read. Raises
    UserError, with the line where there is one, for what is no such table; the rows before it have been given.
    """
    if Path(path).is_dir():
        yield from read_folder(Path(path), ENDINGS, split, lambda part: read_batches(part, fields))
        return
    if split is not None:
        raise UserError(f"{path}: split: {split} is for folders, and this is one file; leave it out.")
    source = Source(path)
    if source.ending == ".parquet" and not source.is_packed:
        yield from read_parquet(source.path, source.name, list(fields))
        return
    source.open()
    kind = source.ending if source.ending in ENDINGS else _kind_of(source)
    if kind == ".parquet":
        yield from read_parquet(pa.BufferReader(source.read_all()), source.name, list(fields))
    elif kind == ".csv":
        yield from read_csv(source.line_blocks(), source.name)
    else:
        yield from read_json(source.line_blocks(), source.name)


def _kind_of(source: Source) -> str:
    """Kind of an input whose name says nothing, by its first bytes; an empty one is a table without rows."""
    head = source.peek()
    if source.is_parquet():
        return ".parquet"
    if looks_like_json(head) or not head.strip():
        return ".jsonl"
    if looks_like_csv(head):
        return ".csv"
    told = f"the ending {source.ending} is not known, and " if source.ending else ""
    raise UserError(
        f"{source.name}: {told}the content begins like no table: neither JSON nor CSV with several columns. "
        f"Use {', '.join(ENDINGS)}; each may be followed by {' or '.join(PACKED)}."
    )
