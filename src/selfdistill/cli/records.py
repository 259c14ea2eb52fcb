"""Fields of records from anywhere, and results back out: JSON lines, CSV rows, totals."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from selfdistill.cli.console import csv_writer
from selfdistill.schema.errors import UserError, nearest
from selfdistill.sources.paths import MISSING, look_up
from selfdistill.sources.text_tables import Record

Result = TypeVar("Result")


class Format(StrEnum):
    """How results of single records are written."""

    json = "json"
    csv = "csv"


class Measure(NamedTuple):
    """One line of the totals; an interval of 95 % and how it was made, where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""


def until_error(results: Iterable[Result]) -> tuple[list[Result], UserError | None]:
    """The results before the first bad record, and its error: raise it when they have been written."""
    good: list[Result] = []
    try:
        for result in results:
            good.append(result)
    except UserError as error:
        return good, error
    return good, None


def value_at(row: Record, field: str) -> Any:
    """What stands at a dotted path (`reward_model.ground_truth`); UserError where nothing does."""
    value = look_up(row.values, field)
    if value is MISSING or value is None:
        hint = nearest(field, row.values)
        raise UserError(f"{row.where} has no `{field}`.{hint} Fields there: {', '.join(row.values) or 'none'}.")
    return value


def texts_at(row: Record, field: str) -> list[str]:
    """The completion at a field, or the completions where it holds a list of them."""
    value = value_at(row, field)
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{row.where}: `{field}` is neither a text nor a list of texts.")
    return texts


def scalar_at(row: Record, field: str) -> str:
    """A text or number as text; a whole float is an integer, as tables with gaps turn one into the other."""
    value = value_at(row, field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (dict, list, bytes)) or not str(value).strip():
        raise UserError(f"{row.where}: `{field}` is not a text or number: {str(value)[:80]}.")
    return str(value).strip()


def problem_at(row: Record, field: str, problem_field: str | None) -> str | None:
    """What names the problem of a record; without a field for it, a record with a list of completions is one itself."""
    if problem_field:
        return scalar_at(row, problem_field)
    return str(row.number) if isinstance(value_at(row, field), list) else None


class Writer:
    """Results to standard output as soon as they are there: JSON lines, CSV rows, or totals alone for people."""

    def __init__(self, form: Format | None, columns: Sequence[str]) -> None:
        self._form = form
        self._csv = csv_writer(columns) if form == Format.csv else None
        if self._csv:
            self._csv.writeheader()

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        if self._csv:
            self._csv.writerows(records)
        elif self._form == Format.json:
            for record in records:
                # ASCII only: any terminal can show it.
                print(json.dumps(record))
        sys.stdout.flush()

    def finish(self, counts: Mapping[str, int], measures: Sequence[Measure]) -> None:
        """Totals: the last line of JSON, else a table; on standard error where rows of CSV fill standard output."""
        if self._form == Format.json:
            print(json.dumps({"totals": {**counts, "measures": [measure._asdict() for measure in measures]}}))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("measure", "value", "95 % interval", ""):
            table.add_column(column, justify="left" if column in ("measure", "") else "right")
        for name, count in counts.items():
            table.add_row(name, f"{count:,}", "", "")
        for measure in measures:
            ends = "" if measure.low is None else f"{measure.low:.4g} to {measure.high:.4g}"
            table.add_row(measure.name, f"{measure.value:.4g}", ends, measure.interval)
        Console(stderr=self._form == Format.csv, highlight=False).print(table)
