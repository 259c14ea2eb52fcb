"""What the paper claims, and whether these data say the same.

A claim is an order of two or more quantities. Each neighbouring pair is compared by its paired difference: `yes` if
the 95 % interval lies on the expected side of zero, `no` if it lies on the other side, else `unclear`. A claim
holds if all its pairs do, and fails if one does. Intervals are not adjusted for the number of claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from selfdistill.statistics import Difference
from selfdistill.views.evaluations import Evaluation
from selfdistill.views.measures import DENSITY, LENGTH, SCORE, Measurement
from selfdistill.views.study import OUT_OF_DISTRIBUTION, ModelStudy
from selfdistill.views.style import CONTEXT_SYMBOLS, GRPO, GUIDED, METHODS, NO_THINK, SDPO, UNGUIDED
from selfdistill.views.wording import NAMES, listed, shown, signed

Verdict = Literal["yes", "no", "unclear"]

#: Accuracy difference that counts as none: table 2 of the paper has at most 3.75 points between base and unguided SFT.
NEAR = 0.05


@dataclass(frozen=True)
class Check:
    """One line of the table of claims."""

    where: str
    expected: str
    observed: str
    detail: str
    verdict: Verdict
    size: str
    artifacts: tuple[str, ...]


def verdict(difference: Difference) -> Verdict:
    """Whether a difference that should be positive is."""
    if difference.low > 0:
        return "yes"
    return "no" if difference.high < 0 else "unclear"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    if "no" in verdicts:
        return "no"
    return "unclear" if "unclear" in verdicts else "yes"


def checks(study: ModelStudy) -> list[Check]:
    """The claims about methods and teacher contexts that the study has the experiments for."""
    found = [check for name in study.benchmarks(OUT_OF_DISTRIBUTION) for check in _benchmark_checks(study, name)]
    return [*found, *_richness_checks(study)]


def _benchmark_checks(study: ModelStudy, benchmark: str) -> Iterator[Check]:
    found = study.by_method(benchmark)
    if not found:
        return
    base = next(iter(found.values()))
    for metric in (SCORE, LENGTH, DENSITY):
        yield from order(benchmark, metric, _chain(found, base, (GRPO, None, SDPO)))
    if NO_THINK in found:
        for metric in (SCORE, LENGTH, DENSITY):
            yield from order(benchmark, metric, _chain(found, base, (GRPO, NO_THINK, SDPO)))
    yield from order(benchmark, SCORE, _chain(found, base, (UNGUIDED, GUIDED)))
    yield from order(benchmark, SCORE, _chain(found, base, (None, GUIDED)))
    yield from _near(benchmark, _chain(found, base, (UNGUIDED, None)))


@dataclass(frozen=True)
class Link:
    """One quantity of an order, with its name and the artifacts behind it."""

    label: str
    measurement: Measurement
    artifacts: tuple[str, ...]


def _chain(found: dict, base: Evaluation, kinds: Sequence[tuple[str, str | None] | None]) -> list[Link]:
    """The measured ones of the methods, in the expected order; None is the base model."""
    chain = []
    for kind in kinds:
        if kind is None:
            chain.append(base_link(base))
        elif kind in found:
            chain.append(link(METHODS[kind].label, found[kind]))
    return chain


def link(label: str, evaluation: Evaluation) -> Link:
    """An experiment's last checkpoint, seeds averaged."""
    names = evaluation.artifacts(evaluation.steps[-1])["evaluate_artifact"]
    return Link(label, evaluation.last(), tuple(names.split(";")))


def base_link(evaluation: Evaluation) -> Link:
    """The base model that an experiment starts from."""
    return Link("base", evaluation.base_measurement(), (evaluation.base["evaluate_artifact"],))


def order(where: str, metric: str, chain: Sequence[Link]) -> Iterator[Check]:
    """The claim that a metric falls along the chain; nothing to claim about fewer than two."""
    if len(chain) < 2:
        return
    differences = [a.measurement.difference(b.measurement, metric) for a, b in pairwise(chain)]
    parts = [
        f"{a.label} − {b.label}: {signed(metric, d)}" for (a, b), d in zip(pairwise(chain), differences, strict=True)
    ]
    expected = f"{NAMES[metric]}: " + " > ".join(link.label for link in chain)
    yield _check(where, expected, metric, chain, "; ".join(parts), together([verdict(d) for d in differences]))


def _near(where: str, chain: Sequence[Link]) -> Iterator[Check]:
    """The claim that two accuracies are as near as the paper's; the whole interval must lie inside, or outside."""
    if len(chain) < 2:
        return
    a, b = chain
    difference = a.measurement.difference(b.measurement, SCORE)
    inside = difference.low > -NEAR and difference.high < NEAR
    outside = difference.low > NEAR or difference.high < -NEAR
    expected = f"accuracy: {a.label} within {100 * NEAR:.0f} points of {b.label}"
    detail = f"{a.label} − {b.label}: {signed(SCORE, difference)}"
    yield _check(where, expected, SCORE, chain, detail, "yes" if inside else "no" if outside else "unclear")


def _check(where: str, expected: str, metric: str, chain: Sequence[Link], detail: str, found: Verdict) -> Check:
    return Check(
        where=where,
        expected=expected,
        observed=", ".join(f"{link.label} {shown(metric, link.measurement.mean(metric))}" for link in chain),
        detail=detail,
        verdict=found,
        size=f"n = {min(link.measurement.n() for link in chain)}, k = {chain[0].measurement.k}",
        artifacts=tuple(name for link in chain for name in link.artifacts),
    )


def _richness_checks(study: ModelStudy) -> Iterator[Check]:
    """none > s\\think > s, and > regenerated; the paper's order of the last two is not claimed."""
    contexts = study.contexts()
    names = {name: (row["rollouts_artifact"],) for name, row in study.richness.items()}
    links = {
        name: Link(CONTEXT_SYMBOLS[name], m, names[name]) for name, m in contexts.items() if name in CONTEXT_SYMBOLS
    }
    for metric in (LENGTH, DENSITY):
        for last in ("solution", "regenerated"):
            chain = [links[name] for name in ("none", "solution_no_think", last) if name in links]
            yield from order("teacher contexts", metric, chain)


def summary(found: Sequence[Check]) -> str:
    """`9 of 14 claims hold, 1 fails and 4 are unclear.`"""
    counts = {name: sum(c.verdict == name for c in found) for name in ("yes", "no", "unclear")}
    parts = [f"{counts['yes']} of {len(found)} claims hold"]
    words = {"no": ("fails", "fail"), "unclear": ("is unclear", "are unclear")}
    parts += [f"{counts[name]} {text[counts[name] > 1]}" for name, text in words.items() if counts[name]]
    return listed(parts) + "."
