"""Rewards from a function of the user's, called in worker processes that are killed at the time limit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfdistill.grading.pool import WorkerPool
from selfdistill.schema.errors import UserError

if TYPE_CHECKING:
    from selfdistill.schema.common import PythonGraderEntry

#: Reward from which a completion counts as correct (docs/method.md 3).
CORRECT_FROM = 0.5
_WORKER = "selfdistill.grading.function_worker"
#: Instead of the name of the function: load it and check its signature, call nothing.
CHECK = "check"


def check_function(grader: PythonGraderEntry) -> None:
    """Raises UserError where the function cannot be imported or does not take what `call_function` gives it."""
    with WorkerPool(worker=(_WORKER, grader.function)) as workers:
        _read(grader, workers.compare([("", "")], grader.timeout_seconds, CHECK)[0])


def call_function(
    texts: Sequence[tuple[str, ...]], grader: PythonGraderEntry, pool: WorkerPool
) -> list[float | None | str]:
    """What the function says of each (completion, answer, question): a reward, None for no answer, or "timeout".

    A problem may come without its question, as (completion, answer). Raises UserError where the function needs it
    then, where it raises, or returns anything else.
    """
    workers = pool.beside((_WORKER, grader.function))
    return [_read(grader, line) for line in workers.compare(texts, grader.timeout_seconds, grader.function)]


def _read(grader: PythonGraderEntry, line: str) -> float | None | str:
    if line == "timeout":
        return line
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise UserError(f"grader {grader.function}: {reply['error']}")
    return reply["reward"]
