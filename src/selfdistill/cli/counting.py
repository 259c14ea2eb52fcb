"""count-epistemic: epistemic words in completions from anywhere."""

from __future__ import annotations

import sys
from array import array
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from selfdistill.cli.console import OWN_DATA
from selfdistill.cli.records import Format, Measure, Writer, problem_at, texts_at, until_error, value_at
from selfdistill.epistemic import PAPER_WORDS, Mode, count_many, density, has_unspaced_script
from selfdistill.schema.errors import UserError
from selfdistill.sources.tables import read_batches
from selfdistill.sources.text_tables import Record

TOTAL = "total"
DENSITY = "density_per_1k_tokens"
_SEED = 0


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=OWN_DATA, name="count-epistemic")(count_command)


def count_command(
    file: Annotated[str, typer.Argument(help="JSON, CSV (also .gz, .zst) or parquet; - for standard input.")],
    field: Annotated[
        str, typer.Option(help="The completion, or a list of them; dots separate nested names.")
    ] = "completion",
    mode: Annotated[
        str, typer.Option(help="substring: anywhere, the paper's rule; word: no letter, digit or underscore touches.")
    ] = "substring",
    lexicon: Annotated[
        Path | None, typer.Option(help="Words or phrases, one per line, # for remarks; default: the paper's ten.")
    ] = None,
    tokens_field: Annotated[
        str | None, typer.Option(help="Number of tokens, or their ids (lists of these for lists): gives densities.")
    ] = None,
    problem_field: Annotated[
        str | None, typer.Option(help="Field that names the problem: intervals are over problems, not records.")
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Print each record in this format (default: totals as a table).")
    ] = None,
) -> None:
    """Count epistemic words in completions, per word and in all, case ignored.

    Records are written as they come; totals follow, as the last line of JSON, else as a table (on standard error
    beside CSV).
    """
    words = PAPER_WORDS if lexicon is None else read_lexicon(lexicon)
    rule = _mode(mode)
    if rule == "word" and (unspaced := [word for word in words if has_unspaced_script(word)]):
        found = ", ".join(unspaced)
        print(f"warning: {found}: a script without spaces; use --mode substring, or they are missed", file=sys.stderr)
    columns = (*words, TOTAL)
    density_columns = ("tokens", DENSITY) if tokens_field else ()
    writer = Writer(form, ("line", "sample", "problem", *columns, *density_columns))
    tally = _Tally(columns, has_tokens=tokens_field is not None)
    for rows in read_batches(file, [name for name in (field, tokens_field, problem_field) if name]):
        found = (_records(row, field, words, rule, tokens_field, problem_field) for row in rows)
        records, error = until_error(record for records in found for record in records)
        writer.write(records)
        for record in records:
            tally.add(record)
        if error:
            raise error
    writer.finish(tally.counts(), tally.measures())


def read_lexicon(path: Path) -> tuple[str, ...]:
    """Words or phrases, one per line. UserError: none, one listed twice, or a file that is not text."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a lexicon: {error}") from None
    words = [line.lower() for line in lines if line and not line.startswith("#")]
    if not words:
        raise UserError(f"{path}: contains no words; write one word or phrase per line.")
    repeated = sorted({word for word in words if words.count(word) > 1})
    reserved = sorted({"line", "sample", "problem", "tokens", DENSITY, TOTAL} & set(words))
    if repeated or reserved:
        twice = f"is listed twice (ignoring case): {', '.join(repeated)}"
        problem = twice if repeated else f"is a column's name: {reserved}"
        raise UserError(f"{path}: a word {problem}.")
    return tuple(words)


class _Tally:
    """Sums per problem, or per completion where no problem is named: four bytes a number."""

    def __init__(self, columns: Sequence[str], has_tokens: bool) -> None:
        self._columns = (*columns, "tokens") if has_tokens else tuple(columns)
        self._units: defaultdict[Any, int] = defaultdict(lambda: len(self._units))
        self._sums = {name: array("q") for name in (*self._columns, "completions")}

    def add(self, record: dict[str, Any]) -> None:
        completions = self._sums["completions"]
        problem = record["problem"]
        unit = len(completions) if problem is None else self._units[problem]
        if unit == len(completions):
            for sums in self._sums.values():
                sums.append(0)
        for name in self._columns:
            self._sums[name][unit] += record[name]
        completions[unit] += 1

    def counts(self) -> dict[str, int]:
        problems = {"problems": len(self._units)} if self._units else {}
        return {"records": sum(self._sums["completions"]), **problems}

    def measures(self) -> list[Measure]:
        from selfdistill.statistics import mean_interval, ratio_interval

        completions = self._sums["completions"]
        if not completions:
            return []
        made = "over problems" if self._units else "over completions"
        found = []
        for name in self._columns:
            means = [total / k for total, k in zip(self._sums[name], completions, strict=True)]
            found.append(
                Measure(f"{name}, per completion", sum(means) / len(means), *mean_interval(means, _SEED), made)
            )
        if "tokens" in self._sums and any(self._sums["tokens"]):
            total, tokens = self._sums[TOTAL], self._sums["tokens"]
            low, high = ratio_interval([1000.0 * n for n in total], tokens, _SEED)
            # The interval is one to first order, which does not know that a count is never negative.
            found.append(
                Measure("total, per 1,000 tokens", density(sum(total), sum(tokens)), max(low, 0.0), high, made)
            )
        return found


def _records(
    row: Record, field: str, words: Sequence[str], mode: Mode, tokens_field: str | None, problem_field: str | None
) -> list[dict[str, Any]]:
    texts = texts_at(row, field)
    counts = count_many(texts, words, mode)
    is_list = isinstance(value_at(row, field), list)
    problem = problem_at(row, field, problem_field)
    records = []
    for sample in range(len(texts)):
        record = {"line": row.number, "sample": sample, "problem": problem}
        record |= {word: counts[word][sample] for word in words}
        record[TOTAL] = sum(counts[word][sample] for word in words)
        if tokens_field:
            record["tokens"] = _tokens(row, tokens_field, sample, len(texts) if is_list else None)
            record[DENSITY] = density(record[TOTAL], record["tokens"])
        records.append(record)
    return records


def _tokens(row: Record, field: str, sample: int, samples: int | None) -> int:
    """Number of tokens of a completion, given as a number or as the list of ids."""
    value = value_at(row, field)
    if samples is not None:
        if not isinstance(value, list) or len(value) != samples:
            raise UserError(f"{row.where}: `{field}` is not a list of {samples}, one for each completion.")
        value = value[sample]
    number = len(value) if isinstance(value, list) else value
    if isinstance(number, str) and number.strip().isdecimal():
        number = int(number)  # A cell of CSV.
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number < 0 or number != int(number):
        raise UserError(f"{row.where}: `{field}` is neither a number of tokens nor their ids.")
    return int(number)


def _mode(mode: str) -> Mode:
    if mode not in ("substring", "word"):
        raise UserError(f"--mode `{mode}` is unknown; known: substring, word.")
    return mode
