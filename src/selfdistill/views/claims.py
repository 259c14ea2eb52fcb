"""What the paper claims, and whether these data say the same: the table of claims.

A claim is an order of two or more quantities. Each neighbouring pair is compared by its paired difference over
training seeds and problems (`selfdistill.seeds`): `yes` or `no` by its sign if its p-value is at most 5 % after Holm's
adjustment for all comparisons of the table, else `unclear`; `one seed` where a trained model has only one, which
decides nothing beyond the problems. A claim holds if all its pairs do, and fails if one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from selfdistill.seeds import Uncertain
from selfdistill.statistics import holm
from selfdistill.views.measures import DENSITY, LENGTH, SCORE, Measurement
from selfdistill.views.page import Cell, Section, Table, key_cell, num, text
from selfdistill.views.study import OUT_OF_DISTRIBUTION, Evaluation, ModelStudy
from selfdistill.views.style import (
    CONTEXT_SYMBOLS,
    GRPO,
    GUIDED,
    METHODS,
    NAMES,
    NO_THINK,
    SDPO,
    UNGUIDED,
    Kind,
    listed,
    shown,
    signed,
)

Verdict = Literal["yes", "no", "unclear", "one seed"]

#: Chance of a false verdict.
ALPHA = 0.05
#: Seeds of each method from which the headline speaks of the paper's effect.
LEAST_SEEDS = 3

#: Accuracy difference that counts as none: table 2 of the paper has at most 3.75 points between base and unguided SFT.
NEAR = 0.05


@dataclass(frozen=True)
class Comparison:
    """One pair of a claim: whether its values agree with the claim, and how surely.

    `p_value`: of this comparison alone, or after `adjust`; `family_p_value`: what is adjusted (`selfdistill.seeds`).
    """

    agrees: bool
    p_value: float
    has_one_seed: bool
    family_p_value: float

    @classmethod
    def greater(cls, difference: Uncertain) -> Comparison:
        """Of a difference that should be positive."""
        return cls(difference.value > 0, difference.p_value(), difference.has_one_seed, difference.family_p_value())

    @classmethod
    def near(cls, difference: Uncertain, bound: float) -> Comparison:
        """Of a difference that should lie within -bound and bound: it is sure if it is surely off the nearer one."""
        alone = max(difference.p_value(-bound), difference.p_value(bound))
        in_family = max(difference.family_p_value(-bound), difference.family_p_value(bound))
        return cls(abs(difference.value) < bound, alone, difference.has_one_seed, in_family)

    @property
    def verdict(self) -> Verdict:
        if self.has_one_seed:
            return "one seed"
        if self.p_value > ALPHA:
            return "unclear"
        return "yes" if self.agrees else "no"


@dataclass(frozen=True)
class Check:
    """One line of the table of claims."""

    where: str
    expected: str
    observed: str
    detail: str
    comparisons: tuple[Comparison, ...]
    size: str
    artifacts: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        return together([comparison.verdict for comparison in self.comparisons])


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with Holm's p-values: the family is every one that more than one seed can decide."""
    family = [c for c in comparisons if not c.has_one_seed]
    p_values = iter(holm([c.family_p_value for c in family]) if len(family) > 1 else [c.p_value for c in family])
    return [c if c.has_one_seed else replace(c, p_value=float(next(p_values))) for c in comparisons]


def adjusted(found: Sequence[Check]) -> list[Check]:
    """The claims, with the comparisons of all of them adjusted as one family."""
    comparisons = iter(adjust([c for check in found for c in check.comparisons]))
    return [replace(check, comparisons=tuple(next(comparisons) for _ in check.comparisons)) for check in found]


def verdict(difference: Uncertain) -> Verdict:
    """Whether a difference that should be positive is."""
    return Comparison.greater(difference).verdict


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on several pairs: `no` as soon as one is, `yes` only if all are."""
    order: tuple[Verdict, ...] = ("no", "unclear", "one seed")
    return next((name for name in order if name in verdicts), "yes")


@dataclass(frozen=True)
class Link:
    """One quantity of an order, with its name and the artifacts behind it."""

    label: str
    measurement: Measurement
    artifacts: tuple[str, ...]


def link(label: str, evaluation: Evaluation) -> Link:
    """An experiment's last checkpoint, seeds averaged."""
    return Link(label, evaluation.last(), tuple(evaluation.names("evaluate_artifact")))


def base_link(evaluation: Evaluation) -> Link:
    """The base model that an experiment starts from."""
    return Link("base", evaluation.base, tuple(evaluation.names("evaluate_artifact", step=0)))


def checks(study: ModelStudy) -> list[Check]:
    """The claims about methods and teacher contexts that the study has the experiments for."""
    found = [check for name in study.benchmarks(OUT_OF_DISTRIBUTION) for check in _benchmark_checks(study, name)]
    return [*found, *_richness_checks(study)]


def _benchmark_checks(study: ModelStudy, benchmark: str) -> Iterator[Check]:
    found = study.by_method(benchmark)
    if not found:
        return
    for middle in (None, NO_THINK) if NO_THINK in found else (None,):
        for metric in (SCORE, LENGTH, DENSITY):
            yield from order(benchmark, metric, _chain(found, (GRPO, middle, SDPO)))
    yield from order(benchmark, SCORE, _chain(found, (UNGUIDED, GUIDED)))
    yield from order(benchmark, SCORE, _chain(found, (None, GUIDED)))
    yield from _near(benchmark, _chain(found, (UNGUIDED, None)))


def _chain(found: dict[Kind, Evaluation], kinds: Sequence[Kind | None]) -> list[Link]:
    """The measured ones of the methods, in the expected order; None is the base model."""
    base = base_link(next(iter(found.values())))
    known = [kind for kind in kinds if kind is None or kind in found]
    return [base if kind is None else link(METHODS[kind].label, found[kind]) for kind in known]


def _richness_checks(study: ModelStudy) -> Iterator[Check]:
    """none > s\\think > s, and > regenerated; the paper's order of the last two is not claimed."""
    links = {
        name: Link(CONTEXT_SYMBOLS[name], measurement, (study.richness[name]["rollouts_artifact"],))
        for name, measurement in study.contexts().items()
        if name in CONTEXT_SYMBOLS
    }
    for metric in (LENGTH, DENSITY):
        for last in ("solution", "regenerated"):
            names = [name for name in ("none", "solution_no_think", last) if name in links]
            yield from order("teacher contexts", metric, [links[name] for name in names])


def order(where: str, metric: str, chain: Sequence[Link]) -> Iterator[Check]:
    """The claim that a metric falls along the chain; nothing to claim about fewer than two."""
    if len(chain) < 2:
        return
    pairs = [(a, b, a.measurement.difference(b.measurement, metric)) for a, b in pairwise(chain)]
    detail = "; ".join(f"{a.label} − {b.label}: {signed(metric, difference)}" for a, b, difference in pairs)
    expected = f"{NAMES[metric]}: " + " > ".join(link.label for link in chain)
    yield _check(where, expected, metric, chain, detail, [Comparison.greater(difference) for *_, difference in pairs])


def _near(where: str, chain: Sequence[Link]) -> Iterator[Check]:
    """The claim that two accuracies are as near as the paper's; the whole interval must lie inside, or outside."""
    if len(chain) < 2:
        return
    a, b = chain
    difference = a.measurement.difference(b.measurement, SCORE)
    expected = f"accuracy: {a.label} within {100 * NEAR:.0f} points of {b.label}"
    detail = f"{a.label} − {b.label}: {signed(SCORE, difference)}"
    yield _check(where, expected, SCORE, chain, detail, [Comparison.near(difference, NEAR)])


def _check(
    where: str, expected: str, metric: str, chain: Sequence[Link], detail: str, found: Sequence[Comparison]
) -> Check:
    return Check(
        where=where,
        expected=expected,
        observed=", ".join(f"{link.label} {shown(metric, link.measurement.mean(metric))}" for link in chain),
        detail=detail,
        comparisons=tuple(found),
        size=f"n = {min(link.measurement.n() for link in chain)}, k = {chain[0].measurement.k}{_seeds(chain)}",
        artifacts=tuple(name for link in chain for name in link.artifacts),
    )


def _seeds(chain: Sequence[Link]) -> str:
    """`, 3 seeds`: those of the trained models, the fewest; empty where none was trained."""
    seeds = [len(link.measurement.frames) for link in chain if link.measurement.is_trained]
    return f", {min(seeds)} seed{'s' * (min(seeds) > 1)}" if seeds else ""


def checks_section(found: Sequence[Check]) -> Section:
    """Every claim with what was observed."""
    rows = [
        [Cell(c.verdict, tone=c.verdict.replace(" ", "-")), text(c.where), text(c.expected),
         Cell(c.observed, detail=c.detail), num(c.size), key_cell(c.artifacts)]
        for c in found
    ]  # fmt: skip
    table = Table(("holds", "where", "expected", "observed", "size", "artifacts"), rows)
    notes = (
        "A claim holds when every neighbouring pair of its order differs in the expected direction, and surely: the "
        "p-value of the paired difference over training seeds and problems is at most 5 % after Holm's adjustment for "
        "all comparisons of this table. It fails when one pair surely differs in the other direction; otherwise it is "
        "unclear. A model that was trained with one seed decides nothing beyond the problems: one seed. Intervals in "
        "brackets hold for one comparison at a time.",
    )
    lead = summary(found) if found else "This report has too few experiments to check a claim of the paper."
    return Section("checks", "The paper's claims, and what was observed", lead, [table] if found else [], notes)


def summary(found: Sequence[Check]) -> str:
    """`9 of 14 claims hold, 1 fails and 4 are unclear.`"""
    counts = {name: sum(c.verdict == name for c in found) for name in ("yes", "no", "unclear", "one seed")}
    parts = [f"{counts['yes']} of {len(found)} claims hold"]
    words = {"no": ("fails", "fail"), "unclear": ("is unclear", "are unclear"),
             "one seed": ("rests on one seed", "rest on one seed")}  # fmt: skip
    parts += [f"{counts[name]} {text[counts[name] > 1]}" for name, text in words.items() if counts[name]]
    return listed(parts) + "."
