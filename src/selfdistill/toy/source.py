"""The problem table of a toy source: distinct problems of each family."""

from __future__ import annotations

import random
from typing import Protocol

from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import ToySource
from selfdistill.toy.chains import CHAINS, draw_chain
from selfdistill.toy.problems import draw

#: Draws without a new problem after which a family counts as used up.
_PATIENCE = 10_000


class _Problem(Protocol):
    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> int: ...


def distinct(family: str, count: int, rng: random.Random) -> list[_Problem]:
    """`count` problems whose questions differ; UserError when the family holds too few."""
    seen: set[str] = set()
    found: list[_Problem] = []
    misses = 0
    while len(found) < count:
        problem: _Problem = draw_chain(family, rng) if family in CHAINS else draw(family, rng)
        if problem.question in seen:
            misses += 1
            if misses > _PATIENCE:
                raise UserError(
                    f"toy family `{family}` gave only {len(found)} of {count} distinct problems: lower count"
                )
            continue
        misses = 0
        seen.add(problem.question)
        found.append(problem)
    return found


def generate(source: ToySource) -> list[dict[str, str | None]]:
    """The problem table of a source, family by family: question, answer, family, solution (always None).

    `source.count` problems of each family. The same source gives the same rows; a larger count keeps the
    first rows of each family, and the rows of a family do not depend on the other families.
    """
    return [
        {"question": problem.question, "answer": str(problem.answer), "family": family, "solution": None}
        for family in dict.fromkeys(source.families)
        for problem in distinct(family, source.count, random.Random(f"toy problems {family} {source.seed}"))
    ]
