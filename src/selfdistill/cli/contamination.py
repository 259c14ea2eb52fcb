"""contamination: which problems of one set are, word for word or nearly, problems of others."""

from __future__ import annotations

import json
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from selfdistill.cli.console import OWN_DATA, ConfigFile, csv_writer, show_table, workspace
from selfdistill.contamination import Pair, find_pairs
from selfdistill.plan.graph import Node
from selfdistill.plan.settings import CONFIG_FILE
from selfdistill.schema.errors import UserError, unknown
from selfdistill.schema.sources import FieldMap, FileSource, NearDuplicates

_COLUMNS = ("similarity", "exact", "same_answer", "with", "question", "compared_question")
#: Pairs that a table shows.
_TABLE_ROWS = 50


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=OWN_DATA)(contamination)


def contamination(
    first: Annotated[str, typer.Argument(help="A data set of the config, or a file.")],
    others: Annotated[
        list[str] | None, typer.Argument(help="Data sets or files to compare with; none: those the config names.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Similarity, 0 to 1, from which a pair is listed.")] = None,
    question: Annotated[str, typer.Option(help="Path of the question in files, e.g. prompt.0.content.")] = "question",
    answer: Annotated[str, typer.Option(help="Path of the answer in files.")] = "answer",
    form: Annotated[Format, typer.Option("--format", help="How pairs are printed.")] = Format.table,
    configfile: ConfigFile = None,
) -> None:
    """Print exact and near duplicates of problems, best first, and their numbers.

    A data set of the config is taken as its stage makes it (`exclude`, `limit`, `split`), before near duplicates are
    dropped. A table shows the best pairs only; csv and json have all.
    """
    fields = FieldMap(question=question, answer=answer)
    names = list(others or _named(first, configfile))
    least = NearDuplicates().threshold if threshold is None else threshold
    if not 0 < least <= 1:
        raise UserError(f"--threshold {least:g}: must be above 0 and at most 1.")
    ours = _load(first, fields, configfile)
    rows: list[dict[str, Any]] = []
    for name in names:
        theirs = _load(name, fields, configfile)
        pairs = find_pairs([p["question"] for p in ours], [p["question"] for p in theirs], least)
        rows += [_row(name, pair, ours[pair.first], theirs[pair.second]) for pair in pairs]
    rows.sort(key=lambda row: -row["similarity"])
    _PRINTERS[form](rows)
    found = Counter(row["exact"] for row in rows)
    summary = f"{first} ({len(ours)} problems) against {', '.join(names)}: {found[True]} exact, {found[False]} near"
    print(f"{summary} ({least:g} and up).", file=sys.stderr)


def _files(configfile: list[str] | None) -> str:
    return ", ".join(configfile or [CONFIG_FILE])


def _named(name: str, configfile: list[str] | None) -> list[str]:
    """The data sets that the config excludes from this one or compares it with."""
    datasets = workspace(configfile).planner.config.datasets
    entry = datasets.get(name)
    if entry is None:
        raise UserError(f"{name}: say what to compare it with: data sets of {_files(configfile)}, or files.")
    found = list(dict.fromkeys([*entry.compare, *entry.exclude]))
    if not found:
        raise UserError(
            f"{_files(configfile)}: datasets.{name} has neither `compare` nor `exclude`: name data sets or files."
        )
    return found


def _load(name: str, fields: FieldMap, configfile: list[str] | None) -> list[dict[str, Any]]:
    """Problems of a file or of a data set, each text once."""
    from selfdistill.files import sha256_file
    from selfdistill.schema.common import AssetPin
    from selfdistill.sources import load_problems

    path = Path(name)
    if path.is_file():
        source = FileSource(pin=AssetPin(file=path.name, sha256=sha256_file(path)), fields=fields)
        problems, _ = load_problems(source, lambda _: path)
    else:
        project = workspace(configfile)
        if name not in project.planner.config.datasets:
            raise unknown("data set or file", name, project.planner.config.datasets)
        problems = _selected(project.planner.dataset(name))
    return list({problem["question"]: problem for problem in problems}.values())


def _selected(dataset: Node) -> list[dict[str, Any]]:
    """Problems of a data set without those of the data sets that it excludes."""
    from selfdistill.sources import stream_problems
    from selfdistill.sources.selection import Repeats, select

    counts: Counter[str] = Counter()
    excluded = {
        problem["problem_id"]
        for role, other in dataset.inputs.items()
        if role.startswith("exclude.")
        for problem in _selected(other)
    }
    return select(Repeats().watch(stream_problems(dataset.spec.source, counts)), dataset.spec, excluded, counts)


def _row(name: str, pair: Pair, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    values = (round(pair.score, 4), pair.is_exact, ours["answer"] == theirs["answer"], name)
    return dict(zip(_COLUMNS, (*values, ours["question"], theirs["question"]), strict=True))


def _print_table(rows: list[dict[str, Any]]) -> None:
    best = rows[:_TABLE_ROWS]
    short = [{**row, **{name: " ".join(row[name].split())[:70] for name in _COLUMNS[-2:]}} for row in best]
    show_table(_COLUMNS, [[row[name] for name in _COLUMNS] for row in short])
    if len(rows) > len(best):
        print(f"... and {len(rows) - len(best):,} more pairs: use --format csv for all.", file=sys.stderr)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    writer = csv_writer(_COLUMNS)
    writer.writeheader()
    writer.writerows(rows)


def _print_json(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(json.dumps(row))


_PRINTERS = {Format.table: _print_table, Format.csv: _print_csv, Format.json: _print_json}
