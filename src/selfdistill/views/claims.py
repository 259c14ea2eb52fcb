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

from selfdistill.statistics import Difference, paired_difference
from selfdistill.views.evaluations import Evaluation
from selfdistill.views.measures import BOOTSTRAP_SEED, DENSITY, LENGTH, RESAMPLES, SCORE, Measurement
from selfdistill.views.study import OUT_OF_DISTRIBUTION, ModelStudy
from selfdistill.views.style import CONTEXT_SYMBOLS, GRPO, GUIDED, METHODS, NO_THINK, SDPO, UNGUIDED
from selfdistill.views.training import REWARD, TOKENS, final_values
from selfdistill.views.wording import NAMES, listed, shown, signed

Verdict = Literal["yes", "no", "unclear"]


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
    """Every claim that the study has the experiments for."""
    found = [check for name in study.benchmarks(OUT_OF_DISTRIBUTION) for check in _benchmark_checks(study, name)]
    return [*found, *_richness_checks(study), *_coverage_checks(study)]


def _benchmark_checks(study: ModelStudy, benchmark: str) -> Iterator[Check]:
    found = study.by_method(benchmark)
    if not found:
        return
    base = next(iter(found.values()))
    for metric in (SCORE, LENGTH, DENSITY):
        yield from _order(benchmark, metric, _chain(found, base, (GRPO, None, SDPO)))
    yield from _order(benchmark, SCORE, _chain(found, base, (GRPO, NO_THINK, SDPO)))
    yield from _order(benchmark, SCORE, _chain(found, base, (UNGUIDED, GUIDED)))


@dataclass(frozen=True)
class _Link:
    label: str
    measurement: Measurement
    artifacts: tuple[str, ...]


def _chain(found: dict, base: Evaluation, kinds: Sequence[tuple[str, str | None] | None]) -> list[_Link]:
    """The measured ones of the methods, in the expected order; None is the base model."""
    chain = []
    for kind in kinds:
        if kind is None:
            chain.append(_Link("base", base.base_measurement(), (base.base["evaluate_artifact"],)))
        elif kind in found:
            chain.append(_link(METHODS[kind].label, found[kind]))
    return chain


def _link(label: str, evaluation: Evaluation) -> _Link:
    names = evaluation.artifacts(evaluation.steps[-1])["evaluate_artifact"]
    return _Link(label, evaluation.last(), tuple(names.split(";")))


def _order(where: str, metric: str, chain: Sequence[_Link]) -> Iterator[Check]:
    """The claim that a metric falls along the chain; nothing to claim about fewer than two."""
    if len(chain) < 2:
        return
    differences = [a.measurement.difference(b.measurement, metric) for a, b in pairwise(chain)]
    parts = [
        f"{a.label} − {b.label}: {signed(metric, d)}" for (a, b), d in zip(pairwise(chain), differences, strict=True)
    ]
    values = ", ".join(f"{link.label} {shown(metric, link.measurement.mean(metric))}" for link in chain)
    yield Check(
        where=where,
        expected=f"{NAMES[metric]}: " + " > ".join(link.label for link in chain),
        observed=values,
        detail="; ".join(parts),
        verdict=together([verdict(d) for d in differences]),
        size=f"n = {min(link.measurement.n() for link in chain)}, k = {chain[0].measurement.k}",
        artifacts=tuple(name for link in chain for name in link.artifacts),
    )


def _richness_checks(study: ModelStudy) -> Iterator[Check]:
    """none > s\\think > s, and > regenerated; the paper's order of the last two is not claimed."""
    contexts = study.contexts()
    names = {name: (row["rollouts_artifact"],) for name, row in study.richness.items()}
    links = {
        name: _Link(CONTEXT_SYMBOLS[name], m, names[name]) for name, m in contexts.items() if name in CONTEXT_SYMBOLS
    }
    for metric in (LENGTH, DENSITY):
        for last in ("solution", "regenerated"):
            chain = [links[name] for name in ("none", "solution_no_think", last) if name in links]
            yield from _order("teacher contexts", metric, chain)


def _coverage_checks(study: ModelStudy) -> Iterator[Check]:
    for benchmark in dict.fromkeys(e.benchmark for e in study.coverage if e.domain == OUT_OF_DISTRIBUTION):
        yield from _coverage_on(study, benchmark)


def sweep(study: ModelStudy, kind: tuple[str, str | None], benchmark: str) -> list[Evaluation]:
    """Experiments of one method on a benchmark, by number of distinct problems; the whole data set last."""
    chosen = [e for e in study.coverage if (e.about["method"], e.about["context"]) == kind and e.benchmark == benchmark]
    return sorted(chosen, key=lambda e: (e.about["distinct"] is None, e.about["distinct"] or 0))


def _coverage_on(study: ModelStudy, benchmark: str) -> Iterator[Check]:
    where = f"task coverage, {benchmark}"
    sdpo, grpo = sweep(study, SDPO, benchmark), sweep(study, GRPO, benchmark)
    for evaluation in sdpo:
        link = _link(f"SDPO on {problems(evaluation)}", evaluation)
        base = _Link("base", evaluation.base_measurement(), (evaluation.base["evaluate_artifact"],))
        yield from _order(where, SCORE, [base, link])
    if len(grpo) > 1:
        ends = [_link(f"GRPO on {problems(e)}", e) for e in (grpo[-1], grpo[0])]
        yield from _order(where, SCORE, ends)
    if len(sdpo) > 1:
        ends = [(f"SDPO on {problems(e)}", e) for e in (sdpo[0], sdpo[-1])]
        yield from _training_order("training score", REWARD, SCORE, ends)
    if sdpo and grpo and problems(sdpo[0]) == problems(grpo[0]):
        ends = [(f"{name} on {problems(e)}", e) for name, e in (("GRPO", grpo[0]), ("SDPO", sdpo[0]))]
        yield from _training_order("length in training", TOKENS, LENGTH, ends)


def _training_order(quantity: str, column: str, metric: str, ends: Sequence[tuple[str, Evaluation]]) -> Iterator[Check]:
    """A training scalar is higher in the first run than in the second; the unit is one of the last training steps.

    Steps draw their batches independently, so pairing them by position widens or narrows nothing.
    """
    runs = [tuple(e.artifacts(e.steps[-1])["train_artifact"].split(";")) for _, e in ends]
    values = [final_values(names, column) for names in runs]
    if values[0] is None or values[1] is None:
        return
    steps = min(map(len, values))
    difference = paired_difference(values[0][-steps:], values[1][-steps:], BOOTSTRAP_SEED, resamples=RESAMPLES)
    shown_values = ", ".join(f"{label} {shown(metric, v.mean())}" for (label, _), v in zip(ends, values, strict=True))
    yield Check(
        where="task coverage, training",
        expected=f"{quantity}: " + " > ".join(label for label, _ in ends),
        observed=shown_values,
        detail=f"difference {signed(metric, difference)}",
        verdict=verdict(difference),
        size=f"last {steps} steps",
        artifacts=runs[0] + runs[1],
    )


def problems(evaluation: Evaluation) -> str:
    """`8 problems`, or `all problems`."""
    distinct = evaluation.about["distinct"]
    return f"{distinct} problems" if distinct is not None else "all problems"


def summary(found: Sequence[Check]) -> str:
    """`9 of 14 claims hold, 1 fails and 4 are unclear.`"""
    counts = {name: sum(c.verdict == name for c in found) for name in ("yes", "no", "unclear")}
    parts = [f"{counts['yes']} of {len(found)} claims hold"]
    words = {"no": ("fails", "fail"), "unclear": ("is unclear", "are unclear")}
    parts += [f"{counts[name]} {text[counts[name] > 1]}" for name, text in words.items() if counts[name]]
    return listed(parts) + "."
