"""Which problems of a source a data set keeps: not excluded, not repeated, within the limit, on one side of a split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from selfdistill.prompts import problem_id
from selfdistill.schema.sources import Part
from selfdistill.schema.stages import DatasetSpec

Problem = dict[str, Any]


def select(
    problems: Iterable[Problem], spec: DatasetSpec, excluded: Collection[str], counts: Counter[str]
) -> list[Problem]:
    """The problems that `spec` keeps, in order. Problems carry their `problem_id`; `excluded` are such identities.

    Reads all problems; those that are dropped are counted by reason in `counts`.
    """
    kept = list(_kept(problems, spec, excluded, counts))
    return kept if spec.split is None else _one_side(kept, spec.split, counts)


class Repeats:
    """Counts of a source before anything was dropped: rows, distinct problems, problems with several answers."""

    def __init__(self) -> None:
        self.rows = 0
        self._copies: Counter[str] = Counter()
        self._answers: dict[str, str] = {}
        self._conflicts: set[str] = set()

    def watch(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """Yield the problems with their identity; a repeated text is not normalised again."""
        known: dict[bytes, str] = {}
        for problem in problems:
            text = hashlib.blake2b(problem["question"].encode("utf-8", "surrogatepass"), digest_size=16).digest()
            identity = known.get(text) or known.setdefault(text, problem_id(problem["question"]))
            self.rows += 1
            self._copies[identity] += 1
            if self._answers.setdefault(identity, problem["answer"]) != problem["answer"]:
                self._conflicts.add(identity)
            yield {**problem, "problem_id": identity}

    @property
    def distinct(self) -> int:
        return len(self._copies)

    def summary(self) -> dict[str, int]:
        copies = sorted(self._copies.values())
        return {
            "rows": self.rows,
            "distinct": self.distinct,
            "fewest_copies": copies[0],
            "median_copies": copies[len(copies) // 2],
            "most_copies": copies[-1],
            "with_several_answers": len(self._conflicts),
        }


def _kept(
    problems: Iterable[Problem], spec: DatasetSpec, excluded: Collection[str], counts: Counter[str]
) -> Iterator[Problem]:
    seen: set[str] = set()
    kept = 0
    for problem in problems:
        identity = problem["problem_id"]
        if identity in excluded:
            counts["in an excluded data set"] += 1
        elif spec.deduplicate and identity in seen:
            counts["duplicate"] += 1
        elif spec.limit is not None and kept >= spec.limit:
            counts["beyond the limit"] += 1
        else:
            kept += 1
            yield problem
        seen.add(identity)


def _one_side(problems: list[Problem], split: Part, counts: Counter[str]) -> list[Problem]:
    """Order distinct problems by a keyed hash of their identity; the first of them are the test side."""
    distinct = {problem["problem_id"] for problem in problems}
    order = sorted(distinct, key=lambda name: hashlib.sha256(f"{split.seed}:{name}".encode()).digest())
    test = set(order[: round(split.test_share * len(order))])
    kept = [problem for problem in problems if (problem["problem_id"] in test) == (split.part == "test")]
    counts["on the other side of the split"] += len(problems) - len(kept)
    return kept
