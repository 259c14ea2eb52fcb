"""Records of Arrow data (parquet files, saved data sets), in batches bounded by bytes.

Binary columns that hold UTF-8 are text: some writers know no other type for it. Other bytes stay bytes, and whoever
wants a text refuses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfdistill.schema.errors import UserError
from selfdistill.sources.text_tables import Record

#: Bounds of one batch: rows of a megabyte come a few at a time, however they were grouped in the file.
BATCH_BYTES = 2**24
BATCH_ROWS = 1024
_PROBE_ROWS = 32


def read_parquet(source: Any, name: str, fields: Sequence[str]) -> Iterator[list[Record]]:
    """Batches of records of a path or Arrow buffer. Only columns that `fields` (dotted paths) need are read, if all are
    there; else all columns, for the message of whoever misses one. Raises UserError for what is no parquet.
    """
    try:
        # Buffered: otherwise the whole column of a row group is held.
        file = pq.ParquetFile(source, buffer_size=2**16)
        columns = _wanted(file.schema_arrow.names, name, fields)
        yield from read_batches(_parquet_batches(file, columns), name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read as parquet: {error}.") from None


def read_batches(batches: Iterable[pa.RecordBatch | pa.Table], name: str) -> Iterator[list[Record]]:
    """Batches of records, of Arrow batches of any size."""
    number = 0
    for batch in batches:
        has_bytes = any(_holds_bytes(column) for column in batch.schema.types)
        step = max(1, min(BATCH_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for first in range(0, batch.num_rows, step):
            rows = batch.slice(first, step).to_pylist()
            if has_bytes:
                rows = [text_of(row) for row in rows]
            yield [Record(number + i, f"{name}: row {number + i}", row) for i, row in enumerate(rows, start=1)]
            number += len(rows)


def _wanted(names: Sequence[str], name: str, fields: Sequence[str]) -> list[str] | None:
    if repeated := [column for column, times in Counter(names).items() if times > 1]:
        raise UserError(f"{name}: two columns are called `{repeated[0]}`: rename one of them.")
    columns = {
        field: [column for column in names if field == column or field.startswith(f"{column}.")] for field in fields
    }
    return sorted({column for found in columns.values() for column in found}) if all(columns.values()) else None


def _parquet_batches(file: pq.ParquetFile, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        sizes = sum(
            about.column(index).total_uncompressed_size
            for index in range(about.num_columns)
            if columns is None or about.column(index).path_in_schema.split(".")[0] in columns
        )
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * about.num_rows // max(1, sizes)))
        if rows > _PROBE_ROWS:
            # The sizes in the file count a repeated text once; the first rows show what they take in memory.
            first = next(file.iter_batches(_PROBE_ROWS, row_groups=[group], columns=columns))
            rows = max(1, min(rows, BATCH_BYTES * first.num_rows // max(1, first.nbytes)))
        yield from file.iter_batches(rows, row_groups=[group], columns=columns)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def text_of(value: Any) -> Any:
    """The value with all bytes in it that are UTF-8 as text."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, list):
        return [text_of(item) for item in value]
    if isinstance(value, dict):
        return {name: text_of(item) for name, item in value.items()}
    return value
