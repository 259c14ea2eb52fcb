"""Parquet tables of the payloads: their columns, how they are written and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfdistill.files import replacing
from selfdistill.schema.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_INT_LIST = pa.list_(pa.int32())
_BUFFER_BYTES = 2**20

#: Columns with a fixed type, so that empty or all-null tables keep their schema.
COLUMNS: dict[str, pa.DataType] = {
    "row_id": pa.int64(), "sample": pa.int32(), "step": pa.int32(), "problem_id": pa.string(), "family": pa.string(),
    "question": pa.string(), "answer": pa.string(), "solution": pa.string(), "source": pa.string(),
    "messages": pa.string(), "prompt_ids": _INT_LIST, "prompt_tokens": pa.int32(), "completion": pa.string(),
    "completion_ids": _INT_LIST, "logprobs": pa.list_(pa.float32()), "completion_tokens": pa.int32(),
    "stop_reason": pa.string(), "outcome": pa.string(), "reward": pa.float64(), "extracted": pa.string(),
    "kind": pa.string(), "context": pa.string(), "source_row_id": pa.int64(), "source_sample": pa.int32(),
    "arm": pa.string(), "system": pa.string(), "feedback": pa.string(), "compared_with": pa.string(),
    "compared_problem_id": pa.string(), "compared_question": pa.string(), "compared_answer": pa.string(),
    "similarity": pa.float64(), "is_exact": pa.bool_(), "is_same_answer": pa.bool_(), "is_dropped": pa.bool_(),
    "place": pa.int32(), "regenerated": pa.string(),
}  # fmt: skip

PROBLEMS = ("row_id", "problem_id", "question", "answer", "family", "solution", "source")
PROMPTS = ("row_id", "problem_id", "family", "question", "answer", "messages", "prompt_ids")
ROLLOUTS = (
    "step", "row_id", "sample", "problem_id", "family", "answer", "prompt_tokens", "completion", "completion_ids",
    "logprobs", "completion_tokens", "stop_reason", "outcome", "reward", "extracted",
)  # fmt: skip
NEAR_DUPLICATES = (
    "problem_id", "question", "answer", "compared_with", "compared_problem_id", "compared_question", "compared_answer",
    "similarity", "is_exact", "is_same_answer", "is_dropped",
)  # fmt: skip
CONTEXTS = ("problem_id", "kind", "context", "source_row_id", "source_sample")
SFT = ("arm", "problem_id", "row_id", "prompt_ids", "completion_ids", "completion", "completion_tokens")


def problem_columns(problems: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Columns of a problem table; `system` only if a problem has one, so that other tables keep their bytes."""
    return PROBLEMS + (("system",) if any(problem.get("system") for problem in problems) else ())


def prompt_columns(prompts: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Columns of a table of prompts; `solution` only if a problem has one, so that other tables keep their bytes."""
    return PROMPTS + (("solution",) if any(prompt.get("solution") for prompt in prompts) else ())


def rollout_columns(grader_kind: str, *, is_regenerated: bool = False) -> tuple[str, ...]:
    """Columns of a table of completions; `feedback` only from the grader of programs.

    `is_regenerated`: demonstrations have been written anew for a teacher.
    """
    feedback = ("feedback",) if grader_kind == "code" else ()
    return ROLLOUTS + feedback + (("regenerated",) if is_regenerated else ())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> None:
    """Write rows as parquet with exactly these columns."""
    schema = pa.schema([(name, COLUMNS[name]) for name in columns])
    table = pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows], schema=schema)
    write_table(path, table)


def write_table(path: Path, table: pa.Table) -> None:
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_rows(path: Path, columns: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The table as a list of dicts, in file order. UserError for a damaged file."""
    return _read(path, columns).to_pylist()


def read_frame(path: Path, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The table as a data frame. UserError for a damaged file."""
    return _read(path, columns).to_pandas()


def read_batches(path: Path, columns: Iterable[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The table in file order, at most so many rows at a time. UserError for a damaged file.

    One page of each column is held besides, which the writer closes after 1,024 rows; row groups may be of any size.
    """
    try:
        # With a small buffer; otherwise all bytes of a row group's column are held, as they are in the file.
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            wanted = list(columns)
            if missing := sorted(set(wanted) - set(file.schema_arrow.names)):
                raise pa.ArrowInvalid(f"it has no column {', '.join(missing)}")
            yield from file.iter_batches(rows, columns=wanted)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _read(path: Path, columns: Iterable[str] | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns) if columns else None)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({(str(error).splitlines() or [''])[0]}). See: selfdistill verify")
