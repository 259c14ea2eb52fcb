"""Chain problems of the toy world: one number from each list, so that every running total has the asked residue.

    which mod 5 = r2 : A 7 B 3 C 2 now + mod 7 = r1 : D 4 E 8 F 2 G 9            ->  8

    7 mod 5 = r2 and 2 mod 5 = r2, so A and C both look right. Only 7 goes on: 7 + 8 = 15, and 15 mod 7 = r1. C is a
    dead end, which shows only when all of D to G have failed.

The answer is the number from the last list. Exactly one chain fits. A first choice that passes its own check can fail
late, and has to be given up then.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from selfdistill.toy.problems import LABELS


@dataclass(frozen=True)
class ChainFamily:
    """What the problems of a family have in common. Numbers are below `numbers`, so that every total is a token."""

    lists: tuple[int, ...]
    moduli: tuple[tuple[int, ...], ...]
    passing: int
    numbers: int = 12


#: `chain` is trained on; the other three are out of distribution: more dead ends, new moduli, one more list.
CHAINS: dict[str, ChainFamily] = {
    "chain": ChainFamily(lists=(3, 4), moduli=((4, 5), (5, 7)), passing=2),
    "chain_long": ChainFamily(lists=(4, 4), moduli=((4, 5), (5, 7)), passing=3),
    "chain_mod": ChainFamily(lists=(3, 4), moduli=((6, 9), (6, 9)), passing=2),
    "chain_deep": ChainFamily(lists=(3, 2, 3), moduli=((4, 5), (5, 7), (5, 7)), passing=2, numbers=8),
}
OOD_CHAINS = ("chain_long", "chain_mod", "chain_deep")


@dataclass(frozen=True)
class Chain:
    """One problem; `chain` holds the places of the right numbers, one in each list."""

    family: str
    moduli: tuple[int, ...]
    residues: tuple[int, ...]
    lists: tuple[tuple[int, ...], ...]
    chain: tuple[int, ...]

    @property
    def answer(self) -> int:
        return self.lists[-1][self.chain[-1]]

    @property
    def question(self) -> str:
        return "which " + " now + ".join(self._stage(stage) for stage in range(len(self.lists)))

    def _stage(self, stage: int) -> str:
        listed = (f"{self.label(stage, place)} {number}" for place, number in enumerate(self.lists[stage]))
        return f"mod {self.moduli[stage]} = r{self.residues[stage]} : {' '.join(listed)}"

    def label(self, stage: int, place: int) -> str:
        """Labels run on from list to list."""
        return LABELS[sum(len(numbers) for numbers in self.lists[:stage]) + place]

    def residue_of(self, stage: int, total: int) -> int:
        return total % self.moduli[stage]

    def fits(self, stage: int, total: int) -> bool:
        """Whether a running total after `stage` has the asked residue."""
        return self.residue_of(stage, total) == self.residues[stage]


def complete(problem: Chain, stage: int = 0, total: int = 0) -> list[tuple[int, ...]]:
    """All chains of places that fit from a stage on."""
    if stage == len(problem.lists):
        return [()]
    return [
        (place, *rest)
        for place, number in enumerate(problem.lists[stage])
        if problem.fits(stage, total + number)
        for rest in complete(problem, stage + 1, total + number)
    ]


def draw_lists(family: str, rng: random.Random) -> Chain:
    """Random lists with residues that one random chain has; other chains may fit as well."""
    kind = CHAINS[family]
    moduli = tuple(rng.choice(choices) for choices in kind.moduli)
    lists = tuple(tuple(rng.sample(range(kind.numbers), size)) for size in kind.lists)
    chain = tuple(rng.randrange(size) for size in kind.lists)
    total, residues = 0, []
    for modulus, numbers, place in zip(moduli, lists, chain, strict=True):
        total += numbers[place]
        residues.append(total % modulus)
    return Chain(family, moduli, tuple(residues), lists, chain)


def draw_chain(family: str, rng: random.Random) -> Chain:
    """One random problem of a family: a single chain fits, and so many numbers of the first list pass their check."""
    while True:
        problem = draw_lists(family, rng)
        passing = sum(problem.fits(0, number) for number in problem.lists[0])
        if passing == CHAINS[family].passing and complete(problem) == [problem.chain]:
            return problem
