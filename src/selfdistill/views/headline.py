"""The finding in one sentence per model, chosen by the numbers: it says so when the effect does not show."""

from __future__ import annotations

from selfdistill.views.claims import Verdict, together, verdict
from selfdistill.views.evaluations import Evaluation
from selfdistill.views.measures import DENSITY, SCORE
from selfdistill.views.study import OUT_OF_DISTRIBUTION, ModelStudy
from selfdistill.views.style import GRPO, METHODS, SDPO
from selfdistill.views.wording import listed, number, signed, whole_percent

_NAMES = {kind: METHODS[kind].label for kind in (GRPO, SDPO)}
_OPENINGS: dict[Verdict, str] = {
    "yes": "The paper's effect shows",
    "unclear": "The paper's effect shows only in part",
    "no": "The paper's effect does not show",
}


def headline(study: ModelStudy) -> str:
    """One sentence about GRPO and SDPO (c = s) against the base, out of distribution.

    GRPO should gain and SDPO should lose, with the interval on that side of zero, on every benchmark.
    """
    benchmarks = [b for b in study.benchmarks(OUT_OF_DISTRIBUTION) if {GRPO, SDPO} & set(study.by_method(b))]
    if not benchmarks:
        return "There is no GRPO or SDPO run on an out-of-distribution benchmark here, so there is no finding to state."
    verdicts = {b: _effect(study, b) for b in benchmarks}
    holding = [b for b, found in verdicts.items() if found == "yes"]
    overall = together(list(verdicts.values()))
    if overall == "no" and holding:
        overall = "unclear"
    share = f" on {len(holding)} of {len(benchmarks)} benchmarks" if len(benchmarks) > 1 else ""
    missing = [name for kind, name in _NAMES.items() if kind not in study.by_method(benchmarks[0])]
    caveat = f" There is no {listed(missing)} run to compare with." if missing else ""
    return f"{_OPENINGS[overall]}{share}: {_detail(study, benchmarks[0])}{caveat}"


def _effect(study: ModelStudy, benchmark: str) -> Verdict:
    found = study.by_method(benchmark)
    verdicts: list[Verdict] = []
    if GRPO in found:
        verdicts.append(verdict(found[GRPO].last().difference(found[GRPO].base_measurement(), SCORE)))
    if SDPO in found:
        verdicts.append(verdict(found[SDPO].base_measurement().difference(found[SDPO].last(), SCORE)))
    return together(verdicts)


def _detail(study: ModelStudy, benchmark: str) -> str:
    """`on x GRPO gains 22.9 points over the base ..; uncertainty words per 1,000 tokens rise from 288 to 353 ..`"""
    found = {name: study.by_method(benchmark).get(kind) for kind, name in _NAMES.items()}
    known = {name: evaluation for name, evaluation in found.items() if evaluation is not None}
    moves = listed([f"{name} {_moves(evaluation)}" for name, evaluation in known.items()])
    words = listed([f"{_density(evaluation)} under {name}" for name, evaluation in known.items()])
    base = next(iter(known.values())).base_measurement()
    return (
        f"on {benchmark}, where {whole_percent(base.mean(SCORE))} of the base model's answers are right, {moves}; "
        f"uncertainty words per 1,000 tokens {words} (base: {number(base.mean(DENSITY))})."
    )


def _moves(evaluation: Evaluation) -> str:
    """`gains 24.8 points`."""
    score = evaluation.last().difference(evaluation.base_measurement(), SCORE)
    if verdict(score) == "unclear":
        return f"does not clearly move ({signed(SCORE, score)})"
    return f"{'gains' if verdict(score) == 'yes' else 'loses'} {100 * abs(score.difference):.1f} points"


def _density(evaluation: Evaluation) -> str:
    """`rise to 353`."""
    last = evaluation.last()
    moved = verdict(last.difference(evaluation.base_measurement(), DENSITY))
    return {"yes": "rise to", "no": "fall to", "unclear": "stay at"}[moved] + f" {number(last.mean(DENSITY))}"
