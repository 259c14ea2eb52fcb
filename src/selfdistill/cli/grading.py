"""grade: verdicts on completions from anywhere, with intervals."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer

from selfdistill.cli.console import OWN_DATA
from selfdistill.cli.records import Format, Measure, Writer, problem_at, scalar_at, texts_at, until_error
from selfdistill.grading import OUTCOMES, Grade, Outcome, WorkerPool, WorkerStartError, check_machine, grade
from selfdistill.schema.common import PYTHON_FUNCTION, ChoiceGrader, GraderEntry, MathGraderEntry, PythonGraderEntry
from selfdistill.schema.errors import UserError
from selfdistill.sources.paths import MISSING, look_up
from selfdistill.sources.tables import read_batches
from selfdistill.sources.text_tables import Record

COLUMNS = ("line", "sample", "problem", "outcome", "reward", "extracted")
#: Verdicts kept for answers that come again: a bound on memory.
_REMEMBERED = 2**16
_SEED = 0
#: Outcomes of completions whose answer is a candidate of maj@k; all correct ones are one candidate.
_VOTING = ("wrong", "timeout", "unreadable_gold")


class Fallback(StrEnum):
    """`MathGraderEntry.fallback` as a choice on the command line."""

    none = "none"
    answer_line = "answer_line"
    last_number = "last_number"


class Rules(StrEnum):
    """`MathGraderEntry.rules` as a choice on the command line."""

    extended = "extended"
    math_verify = "math_verify"
    paper_reward = "paper_reward"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=OWN_DATA, name="grade")(grade_command)


def grade_command(
    file: Annotated[str, typer.Argument(help="JSON, CSV (also .gz, .zst) or parquet; - for standard input.")],
    field: Annotated[
        str, typer.Option(help="The completion, or a list of them; dots separate nested names.")
    ] = "completion",
    gold_field: Annotated[str, typer.Option(help="The gold answer.")] = "answer",
    problem_field: Annotated[
        str | None, typer.Option(help="Field that names the problem: gives avg@k, pass@k and maj@k over problems.")
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Print each record in this format (default: totals as a table).")
    ] = None,
    scope_characters: Annotated[
        int | None,
        typer.Option(min=1, help="Look for the box in the last N characters only (the paper's reward: 100)."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one comparison.")] = 5.0,
    choices: Annotated[str | None, typer.Option(help="Letters that are answers, e.g. ABCD: multiple choice.")] = None,
    fallback: Annotated[
        Fallback, typer.Option(help="Where to look if there is no box: after the last `answer:`, or the last number.")
    ] = Fallback.none,
    rules: Annotated[
        Rules,
        typer.Option(
            help="Other notations of the same answer count, math-verify alone, or the paper's training reward."
        ),
    ] = Rules.extended,
    function: Annotated[
        str | None,
        typer.Option(
            help="Grader of your own, module:function, called with completion, answer and, if it takes it, question."
        ),
    ] = None,
    question_field: Annotated[str, typer.Option(help="The question, for --function.")] = "question",
    workers: Annotated[int, typer.Option(min=1, help="Processes that compare answers.")] = 1,
) -> None:
    """Grade completions: correct, wrong, unparsed (no readable answer), timeout or unreadable_gold.

    Every record needs a completion and a gold answer. Equal answers are compared once. Records are written as they
    come; totals follow, as the last line of JSON, else as a table (on standard error beside CSV).
    """
    grader = _grader(choices, scope_characters, timeout, fallback, rules, function)
    with _starting_workers():
        check_machine(grader)
    writer = Writer(form, COLUMNS)
    tally = _Tally(has_answers=function is None)
    needed = [field, gold_field, problem_field, question_field if function else None]
    with WorkerPool(workers) as pool:
        remembering = _Remembering(pool)
        for rows in read_batches(file, [name for name in needed if name]):
            found, error = until_error(_completions(rows, field, gold_field, problem_field, grader))
            grades = grade(
                [text for *_, text in found],
                [gold for _, _, gold, _ in found],
                ["eos"] * len(found),
                grader,
                remembering,
                [_question(row, question_field) for (row, _), *_ in found],
            )
            about = [(row, sample, problem) for (row, sample), problem, *_ in found]
            writer.write(_record(*key, graded) for key, graded in zip(about, grades, strict=True))
            for (_, _, problem), graded in zip(about, grades, strict=True):
                tally.add(problem, graded)
            if error:
                raise error
    writer.finish(tally.counts(), tally.measures())


@contextmanager
def _starting_workers() -> Iterator[None]:
    """UserError where a worker does not start: mostly a function whose module ends the process."""
    try:
        yield
    except WorkerStartError as error:
        raise UserError(str(error)) from None


class _Remembering:
    """A pool that knows its last verdicts. A timeout is asked again: the machine may have been busy."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._known: OrderedDict[tuple[str, ...], Outcome] = OrderedDict()
        self._beside: dict[tuple[str, ...], _Remembering] = {}

    def beside(self, worker: tuple[str, ...]) -> _Remembering:
        return self._beside.setdefault(worker, _Remembering(self._pool.beside(worker)))

    def compare(
        self, texts: Sequence[tuple[str, ...]], timeout_seconds: float, rules: str = "math_verify"
    ) -> list[Outcome]:
        fresh = [asked for asked in texts if asked not in self._known]
        with _starting_workers():
            found = self._pool.compare(fresh, timeout_seconds, rules) if fresh else []
        verdicts = dict(zip(fresh, found, strict=True))
        outcomes = [verdicts[asked] if asked in verdicts else self._known[asked] for asked in texts]
        self._known |= {asked: outcome for asked, outcome in verdicts.items() if outcome != "timeout"}
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return outcomes


class _Tally:
    """Outcomes so far; per problem where problems are named. Graders without `has_answers` extract none: no maj@k."""

    def __init__(self, *, has_answers: bool) -> None:
        self._has_answers = has_answers
        self._outcomes: Counter[str] = Counter()
        self._correct: defaultdict[str, list[bool]] = defaultdict(list)
        self._answers: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, problem: str | None, graded: Grade) -> None:
        if self._outcomes and bool(self._correct) != (problem is not None):
            raise UserError("some records hold one completion and some a list: name the problems with --problem-field.")
        self._outcomes[graded.outcome] += 1
        if problem is not None:
            self._correct[problem].append(graded.outcome == "correct")
            # Only wrong answers vote by their text; those that were read are short.
            self._answers[problem].append(graded.extracted if graded.outcome in _VOTING else "")

    def counts(self) -> dict[str, int]:
        problems = {"problems": len(self._correct)} if self._correct else {}
        return {"records": self._outcomes.total(), **problems, **{name: self._outcomes[name] for name in OUTCOMES}}

    def measures(self) -> list[Measure]:
        from selfdistill.statistics import binomial_interval

        records = self._outcomes.total()
        if not records:
            return []
        if self._correct:
            return list(self._over_problems())
        right = self._outcomes["correct"]
        return [Measure("score", right / records, *binomial_interval(right, records, method="exact"), "exact binomial")]

    def _over_problems(self) -> Iterator[Measure]:
        from selfdistill.statistics import avg_at_k, bootstrap_interval, maj_at_k, pass_at_k

        def measure(name: str, values: Sequence[float]) -> Measure:
            mean = sum(values) / len(values)
            return Measure(name, mean, *bootstrap_interval(values, _SEED), "bootstrap over problems")

        sizes = {len(row) for row in self._correct.values()}
        samples = str(min(sizes)) if len(sizes) == 1 else f"{min(sizes)}..{max(sizes)}"
        yield measure(f"avg@{samples}", [avg_at_k([row])[0] for row in self._correct.values()])
        for k in _powers(min(sizes)):
            yield measure(f"pass@{k}", [pass_at_k([row], k)[0] for row in self._correct.values()])
        if self._has_answers:
            voted = [maj_at_k([self._answers[name]], [row])[0] for name, row in self._correct.items()]
            yield measure(f"maj@{samples}", voted)


def _powers(largest: int) -> list[int]:
    """1, 2, 4, ... up to and with `largest`."""
    return sorted({2**n for n in range(largest.bit_length())} | {largest})


def _grader(
    choices: str | None,
    scope_characters: int | None,
    timeout: float,
    fallback: Fallback,
    rules: Rules,
    function: str | None,
) -> GraderEntry:
    maths = MathGraderEntry(
        scope_characters=scope_characters, timeout_seconds=timeout, fallback=fallback.value, rules=rules.value
    )
    if choices is None and function is None:
        return maths
    option = "--choices" if function is None else "--function"
    if maths != MathGraderEntry(timeout_seconds=timeout):
        raise UserError(f"--scope-characters, --fallback and --rules belong to maths; leave them out with {option}.")
    if function is not None:
        if choices is not None:
            raise UserError("--choices and --function are two graders: leave one out.")
        if not re.match(PYTHON_FUNCTION, function):
            raise UserError(f"--function `{function}`: write module:function, e.g. my_rewards:brief.")
        return PythonGraderEntry(function=function, timeout_seconds=timeout)
    if len(choices) < 2:
        raise UserError(f"--choices `{choices}`: give at least two letters, e.g. ABCD.")
    return ChoiceGrader(choices=choices)


def _completions(
    rows: Sequence[Record], field: str, gold_field: str, problem_field: str | None, grader: GraderEntry
) -> Iterator[tuple[tuple[Record, int], str | None, str, str]]:
    """((row, sample), problem, gold, completion); a record with a list of completions is a problem of its own."""
    for row in rows:
        texts = texts_at(row, field)
        gold = scalar_at(row, gold_field)
        if isinstance(grader, ChoiceGrader) and gold.upper() not in set(grader.choices.upper()):
            raise UserError(f"{row.where}: `{gold_field}` is `{gold}`, none of the letters {grader.choices}.")
        problem = problem_at(row, field, problem_field)
        yield from (((row, sample), problem, gold, text) for sample, text in enumerate(texts))


def _question(row: Record, field: str) -> str | None:
    """The question of a record as it stands, None without one: only functions that ask for it need it."""
    value = look_up(row.values, field)
    return None if value is MISSING or value is None else str(value)


def _record(row: Record, sample: int, problem: str | None, graded: Grade) -> dict[str, Any]:
    return {
        "line": row.number, "sample": sample, "problem": problem, "outcome": graded.outcome, "reward": graded.reward,
        "extracted": graded.extracted,
    }  # fmt: skip
