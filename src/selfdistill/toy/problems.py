"""Problems of the toy world: which one of the listed numbers satisfies a congruence?

    which mod 7 = r0 : A 6 B 3 C 0 D 8            ->  0          (z mod m = r)
    which + 2 mod 5 = r1 : A 6 B 3 C 4 D 8 E 12   ->  4          ((z + k) mod m = r, family `sum`)

Exactly one candidate is right, at a uniformly random place. A guess is right by chance; checking one
candidate is an easy fact. Families differ in moduli, number of candidates and shift, and in nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

#: Whole numbers that are tokens; every candidate and every sum of the `sum` family is one of them.
LARGEST_NUMBER = 23
LABELS = "ABCDEFGH"


@dataclass(frozen=True)
class Family:
    """What the problems of a family have in common."""

    moduli: tuple[int, ...]
    candidates: int
    shifts: tuple[int, ...] = (0,)


#: `id` is trained on; the other three are out of distribution: longer, new moduli, one more operation.
FAMILIES: dict[str, Family] = {
    "id": Family(moduli=(4, 5, 7), candidates=4),
    "long": Family(moduli=(4, 5, 7), candidates=8),
    "mod": Family(moduli=(6, 9), candidates=6),
    "sum": Family(moduli=(5, 7), candidates=5, shifts=(1, 2, 3)),
}
OOD_FAMILIES = ("long", "mod", "sum")
LARGEST_MODULUS = max(modulus for family in FAMILIES.values() for modulus in family.moduli)


@dataclass(frozen=True)
class Problem:
    """One problem; `candidates[answer_index]` is the only one with the asked residue."""

    family: str
    modulus: int
    residue: int
    shift: int
    candidates: tuple[int, ...]
    answer_index: int

    @property
    def answer(self) -> int:
        return self.candidates[self.answer_index]

    @property
    def header(self) -> str:
        """The congruence, without the candidates."""
        shift = f"+ {self.shift} " if self.shift else ""
        return f"which {shift}mod {self.modulus} = r{self.residue} :"

    @property
    def question(self) -> str:
        listed = (f"{label} {number}" for label, number in zip(LABELS, self.candidates, strict=False))
        return f"{self.header} {' '.join(listed)}"

    def residue_of(self, number: int) -> int:
        return (number + self.shift) % self.modulus


def numbers(shift: int) -> range:
    """Numbers that may be candidates: their sum with the shift stays a token."""
    return range(LARGEST_NUMBER + 1 - shift)


def draw(family: str, rng: random.Random) -> Problem:
    """One random problem of a family."""
    kind = FAMILIES[family]
    modulus = rng.choice(kind.moduli)
    shift = rng.choice(kind.shifts)
    residue = rng.randrange(modulus)
    right = [z for z in numbers(shift) if (z + shift) % modulus == residue]
    wrong = [z for z in numbers(shift) if (z + shift) % modulus != residue]
    candidates = rng.sample(wrong, kind.candidates - 1)
    answer_index = rng.randrange(kind.candidates)
    candidates.insert(answer_index, rng.choice(right))
    return Problem(family, modulus, residue, shift, tuple(candidates), answer_index)
