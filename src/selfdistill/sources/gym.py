"""Procedural problems of the reasoning-gym library: one task with its options and a seed."""

from __future__ import annotations

from collections import Counter

from selfdistill.schema.errors import UserError, unknown
from selfdistill.schema.sources import ReasoningGymSource


def load_gym(source: ReasoningGymSource) -> tuple[list[dict[str, str | None]], Counter[str]]:
    """`count` problems of a task; the same source gives the same rows, a larger count keeps the first ones.

    Rows may repeat where a task has few distinct problems. UserError for an unknown task or option (with the
    nearest), and for options that the task refuses.
    """
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(
            f"the reasoning-gym library is not installed ({error}): one of its parts is compiled at installation. "
            "sudo apt-get install gcc python3-dev; make env"
        ) from None
    if source.task not in DATASETS:
        raise unknown("reasoning-gym task", source.task, DATASETS)
    _, config = DATASETS[source.task]
    known = set(config.__dataclass_fields__) - {"seed", "size"}
    for option in source.options:
        if option not in known:
            raise unknown(f"option of the reasoning-gym task `{source.task}`", option, known)
    try:
        tasks = create_dataset(source.task, seed=source.seed, size=source.count, **source.options)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"reasoning-gym task `{source.task}` refuses the options {source.options}: {error}") from None
    return _problems(source, tasks)


def _problems(source: ReasoningGymSource, tasks) -> tuple[list[dict[str, str | None]], Counter[str]]:
    problems: list[dict[str, str | None]] = []
    counts: Counter[str] = Counter()
    for index in range(source.count):
        item = tasks[index]
        if item["answer"] is None:
            counts["missing answer"] += 1  # such tasks score many right answers; no single one is gold
            continue
        problems.append(
            {"question": str(item["question"]), "answer": str(item["answer"]), "family": "", "solution": None}
        )
    if not problems:
        raise UserError(f"reasoning-gym task `{source.task}` gives no gold answers: {dict(counts)}.")
    return problems, counts
