"""Rows of a table file as dicts, one after the other: parquet, JSON (an array or one object per line), CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfdistill.schema.errors import UserError

Row = dict[str, Any]
_BATCH_ROWS = 4096


def read_table(path: Path) -> Iterator[Row]:
    """Rows in file order. UserError, with the line where there is one, for what is not such a table."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: the ending {path.suffix or '(none)'} is not known; use {', '.join(_READERS)}.")
    try:
        yield from reader(path)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix}: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH_ROWS):
        yield from batch.to_pylist()


def _json(path: Path) -> Iterator[Row]:
    """An array of objects, or one object per line: published files of both kinds end in .json."""
    with path.open(encoding="utf-8-sig") as stream:
        first = stream.read(1)
        while first.isspace():
            first = stream.read(1)
        stream.seek(0)
        if first != "[":
            yield from _lines(path, stream)
            return
        try:
            rows = json.load(stream)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not valid JSON: {error}") from None
    for index, row in enumerate(rows):
        yield _object(path, f"element {index}", row)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        yield from _lines(path, stream)


def _lines(path: Path, stream: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not valid JSON: {error}") from None
        yield _object(path, f"line {number}", row)


def _object(path: Path, where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{path}: {where} is no object with named fields.")
    return row


def _csv(path: Path) -> Iterator[Row]:
    """Every cell stays text: 007 and 1/2 are answers, not numbers and dates."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream, strict=True), start=1):
            if None in row or None in row.values():
                raise UserError(f"{path}: row {number} has another number of cells than the header.")
            yield row


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": _parquet,
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
}
