"""The finding in one sentence per model, chosen by the numbers: it says so when the effect does not show."""

from __future__ import annotations

from itertools import chain

from selfdistill.views.claims import Verdict, together, verdict
from selfdistill.views.evaluations import Evaluation
from selfdistill.views.measures import DENSITY, SCORE
from selfdistill.views.study import OUT_OF_DISTRIBUTION, ModelStudy
from selfdistill.views.style import GRPO, METHODS, SDPO
from selfdistill.views.wording import listed, number, signed, whole_percent

_NAMES = {kind: METHODS[kind].label for kind in (GRPO, SDPO)}


def headline(study: ModelStudy) -> str:
    """One sentence about GRPO and SDPO (c = s) against the base, out of distribution.

    The effect: GRPO gains and SDPO loses, each with its interval on that side of zero, on every benchmark.
    """
    benchmarks = [b for b in study.benchmarks(OUT_OF_DISTRIBUTION) if {GRPO, SDPO} & set(study.by_method(b))]
    if not benchmarks:
        return "There is no GRPO or SDPO run on an out-of-distribution benchmark here, so there is no finding to state."
    moves = [_expected_moves(study, benchmark) for benchmark in benchmarks]
    whole = sum(together(verdicts) == "yes" for verdicts in moves)
    share = f" on {whole} of {len(benchmarks)} benchmarks" if len(benchmarks) > 1 else ""
    missing = [name for kind, name in _NAMES.items() if kind not in study.by_method(benchmarks[0])]
    caveat = f" There is no {listed(missing)} run to compare with." if missing else ""
    return f"{_opening(list(chain(*moves)), share)}: {_detail(study, benchmarks[0])}{caveat}"


def _opening(moves: list[Verdict], share: str) -> str:
    if together(moves) == "yes":
        return f"The paper's effect shows{share}"
    if "yes" in moves:
        return "The paper's effect shows only in part" + (f", in full{share}" if share else "")
    if "no" in moves:
        return "The paper's effect does not show"
    return "These data do not settle whether the paper's effect shows"


def _expected_moves(study: ModelStudy, benchmark: str) -> list[Verdict]:
    """Whether GRPO gained and SDPO lost, of those that there are."""
    found = study.by_method(benchmark)
    verdicts: list[Verdict] = []
    if GRPO in found:
        verdicts.append(verdict(found[GRPO].last().difference(found[GRPO].base_measurement(), SCORE)))
    if SDPO in found:
        verdicts.append(verdict(found[SDPO].base_measurement().difference(found[SDPO].last(), SCORE)))
    return verdicts


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
