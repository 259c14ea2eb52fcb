"""Is a program right? It is run on the unit tests of its task in a sandbox; one test that fails is enough.

The gold answer of such a task is JSON: {"function": name or null, "tests": [{"input", "output"}, ...], "training":
[indices]}. A program without `function` reads standard input and writes standard output; otherwise the function is
called with one argument a line of `input`, as JSON, and its value is compared with `output`.

`tests: training` runs the tests listed in "training" (the paper's reward: half of them), `tests: all` runs all (its
evaluation). What went wrong is told as a text that a teacher can be shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Literal

from selfdistill.grading.sandbox import Backend, Limits, Run, Sandbox, available, obstacle

if TYPE_CHECKING:
    from selfdistill.schema.common import CodeGrader

Verdict = Literal["correct", "wrong", "unparsed", "timeout"]

#: Characters of an input, an output or an error that feedback shows.
_SHOWN_CHARACTERS = 300
CUT_OFF = "The attempt reached the length limit before it ended. Be shorter, and leave room for the whole program."
NO_PROGRAM = "No program was found. Put the whole program into one block that starts with ```python and ends with ```."


@dataclass(frozen=True)
class Task:
    """The tests that are run, with their numbers in the whole list."""

    function: str | None
    tests: tuple[tuple[int, str, str], ...]
    total: int


@dataclass(frozen=True)
class ProgramGrade:
    """Verdict on one program; `feedback` says what went wrong and is empty for a right one."""

    outcome: Verdict
    feedback: str


def extract_program(text: str) -> str:
    """Content of the last fenced block that is closed; "" where there is none."""
    program, lines, is_inside = "", [], False
    for line in text.splitlines():
        is_fence = line.lstrip().startswith("```")
        if is_inside and is_fence and not line.strip().strip("`"):
            program, is_inside = "\n".join(lines) + "\n", False
        elif is_fence:
            lines, is_inside = [], True
        elif is_inside:
            lines.append(line)
    return program if program.strip() else ""


def read_task(answer: str, tests: Literal["training", "all"]) -> Task:
    """The gold answer of a programming task. Raises UserError for anything else."""
    try:
        content = json.loads(answer)
        pairs = [(test["input"], test["output"]) for test in content["tests"]]
        chosen = range(len(pairs)) if tests == "all" else content["training"]
        task = Task(content.get("function") or None, tuple((index, *pairs[index]) for index in chosen), len(pairs))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise _bad_answer(answer, f"{type(error).__name__}: {error}") from None
    if not task.tests or not all(isinstance(text, str) for _, *texts in task.tests for text in texts):
        raise _bad_answer(answer, "tests must be a list of texts, and not empty")
    return task


def grade_programs(pairs: Sequence[tuple[str, str]], grader: CodeGrader, processes: int = 1) -> list[ProgramGrade]:
    """Grade (program, gold answer) pairs, `processes` at a time.

    Raises UserError for a gold answer that is no task, and where this machine has no sandbox.
    """
    if not pairs:
        return []
    tasks = {answer: read_task(answer, grader.tests) for answer in {answer for _, answer in pairs}}
    backend = choose_backend(grader.allow_unsandboxed)
    limits = Limits(timeout_seconds=grader.timeout_seconds, memory_mb=grader.memory_mb, output_mb=grader.output_mb)
    with ThreadPoolExecutor(max_workers=max(1, processes)) as threads:
        jobs = [threads.submit(_grade, code, tasks[answer], backend, limits) for code, answer in pairs]
        return [job.result() for job in jobs]


@cache
def choose_backend(allow_unsandboxed: bool) -> Backend:
    """A sandbox of this machine. Without any, programs of a model are run only if the user has said so."""
    backend = available()
    if backend is not None:
        return backend
    if allow_unsandboxed:
        return "none"
    from selfdistill.schema.errors import UserError

    reasons = "; ".join(f"{name}: {obstacle(name)}" for name in ("bubblewrap", "kernel"))
    raise UserError(
        f"grader kind `code` runs programs that a model wrote, and this machine has no sandbox for them ({reasons}). "
        "Install bubblewrap (apt-get install bubblewrap) or allow user namespaces; on a machine that may be lost, set "
        "allow_unsandboxed: true in the grader."
    )


def is_same_output(found: str, expected: str) -> bool:
    """Equal line by line, blanks at the ends left out; a number may be written otherwise (1.50 and 1.5)."""
    ours, theirs = ([line.split() for line in text.strip().splitlines()] for text in (found, expected))
    if [len(line) for line in ours] != [len(line) for line in theirs]:
        return False
    return all(
        a == b or _is_same_number(a, b)
        for mine, its in zip(ours, theirs, strict=True)
        for a, b in zip(mine, its, strict=True)
    )


def is_same_value(found: str, expected: str) -> bool:
    """Two JSON values are equal; a tuple has become a list on the way."""
    try:
        return json.loads(found) == json.loads(expected)
    except (ValueError, RecursionError):
        return False


def _grade(code: str, task: Task, backend: Backend, limits: Limits) -> ProgramGrade:
    is_right = is_same_value if task.function else is_same_output
    with Sandbox(backend, limits) as sandbox:
        for place, (_, text, expected) in enumerate(task.tests, start=1):
            run = sandbox.run(code, task.function, text)
            if run.status == "ok" and is_right(run.output, expected):
                continue
            name = f"Test {place} of {len(task.tests)}"
            feedback = _feedback(name, run, text, expected, limits)
            return ProgramGrade("timeout" if run.status == "timeout" else "wrong", feedback)
    return ProgramGrade("correct", "")


def _feedback(name: str, run: Run, text: str, expected: str, limits: Limits) -> str:
    """The first test that failed: its input and, for a wrong output, both outputs; for an error, its end."""
    shown_input = f"Input:\n{_cut(text)}"
    if run.status == "timeout":
        return f"{name}: no result within {limits.timeout_seconds:g} seconds.\n{shown_input}"
    if run.status == "output":
        return f"{name}: {run.error}.\n{shown_input}"
    if run.status == "error":
        return f"{name}: the program ended with an error.\n{shown_input}\nError:\n{_cut(run.error, keep_end=True)}"
    return (
        f"{name}: wrong output.\n{shown_input}\nExpected:\n{_cut(expected)}\nOutput of the program:\n{_cut(run.output)}"
    )


def _cut(text: str, keep_end: bool = False) -> str:
    text = text.strip()
    if len(text) <= _SHOWN_CHARACTERS:
        return text or "(nothing)"
    return f"...{text[-_SHOWN_CHARACTERS:]}" if keep_end else f"{text[:_SHOWN_CHARACTERS]}..."


def _is_same_number(found: str, expected: str) -> bool:
    try:
        return Decimal(found) == Decimal(expected)
    except InvalidOperation:
        return False


def _bad_answer(answer: str, reason: str) -> Exception:
    from selfdistill.schema.errors import UserError

    return UserError(
        f"column answer holds `{answer[:60]}` where the tests of a programming task belong ({reason}); "
        "fix the data set, or use another grader than kind: code."
    )


@lru_cache(maxsize=4096)
def describe_task(answer: str) -> str:
    """What tables of completions show in place of megabytes of tests."""
    digest = hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{read_task(answer, 'all').total} tests, sha256 {digest}"
