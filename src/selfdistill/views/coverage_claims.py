"""What the paper says of task coverage (arXiv 2603.24472, section 6.2), and whether these data say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from selfdistill.statistics import paired_difference
from selfdistill.views.claims import Check, base_link, link, order, verdict
from selfdistill.views.evaluations import Evaluation
from selfdistill.views.measures import BOOTSTRAP_SEED, LENGTH, RESAMPLES, SCORE
from selfdistill.views.study import OUT_OF_DISTRIBUTION, ModelStudy
from selfdistill.views.style import GRPO, SDPO
from selfdistill.views.training import REWARD, TOKENS, final_values
from selfdistill.views.wording import shown, signed


def coverage_checks(study: ModelStudy) -> list[Check]:
    """The claims about the number of distinct problems that the study has the experiments for."""
    benchmarks = list(dict.fromkeys(e.benchmark for e in study.coverage if e.domain == OUT_OF_DISTRIBUTION))
    found = [check for name in benchmarks for check in _on_benchmark(study, name)]
    return [*found, *(_in_training(study, benchmarks[0]) if benchmarks else ())]


def sweep(study: ModelStudy, kind: tuple[str, str | None], benchmark: str) -> list[Evaluation]:
    """Experiments of one method on a benchmark, by number of distinct problems; the whole data set last."""
    chosen = [e for e in study.coverage if (e.about["method"], e.about["context"]) == kind and e.benchmark == benchmark]
    return sorted(chosen, key=lambda e: (e.about["distinct"] is None, e.about["distinct"] or 0))


def problems(evaluation: Evaluation) -> str:
    """`8 problems`, or `all problems`."""
    distinct = evaluation.about["distinct"]
    return f"{distinct} problems" if distinct is not None else "all problems"


def _on_benchmark(study: ModelStudy, benchmark: str) -> Iterator[Check]:
    """SDPO below the base at every size and worst at the smallest; GRPO better with more problems."""
    where = f"task coverage, {benchmark}"
    for evaluation in sweep(study, SDPO, benchmark):
        yield from order(where, SCORE, [base_link(evaluation), link(f"SDPO on {problems(evaluation)}", evaluation)])
    for kind, name in ((SDPO, "SDPO"), (GRPO, "GRPO")):
        swept = sweep(study, kind, benchmark)
        if len(swept) > 1:
            yield from order(where, SCORE, [link(f"{name} on {problems(e)}", e) for e in (swept[-1], swept[0])])


def _in_training(study: ModelStudy, benchmark: str) -> Iterator[Check]:
    """SDPO scores high on few problems only, in far shorter completions, and lags GRPO on many."""
    sdpo, grpo = sweep(study, SDPO, benchmark), sweep(study, GRPO, benchmark)
    if len(sdpo) > 1:
        yield from _training_order("training score", REWARD, SCORE, (("SDPO", sdpo[0]), ("SDPO", sdpo[-1])))
    if sdpo and grpo and problems(sdpo[-1]) == problems(grpo[-1]):
        yield from _training_order("training score", REWARD, SCORE, (("GRPO", grpo[-1]), ("SDPO", sdpo[-1])))
    if sdpo and grpo and problems(sdpo[0]) == problems(grpo[0]):
        yield from _training_order("length in training", TOKENS, LENGTH, (("GRPO", grpo[0]), ("SDPO", sdpo[0])))


def _training_order(quantity: str, column: str, metric: str, ends: Sequence[tuple[str, Evaluation]]) -> Iterator[Check]:
    """A training scalar is higher in the first run than in the second; the unit is one of the last training steps.

    Steps draw their batches independently, so pairing them by position widens or narrows nothing.
    """
    labels = [f"{name} on {problems(evaluation)}" for name, evaluation in ends]
    runs = [tuple(e.artifacts(e.steps[-1])["train_artifact"].split(";")) for _, e in ends]
    values = [final_values(names, column) for names in runs]
    if values[0] is None or values[1] is None:
        return
    steps = min(map(len, values))
    difference = paired_difference(values[0][-steps:], values[1][-steps:], BOOTSTRAP_SEED, resamples=RESAMPLES)
    shown_values = ", ".join(f"{label} {shown(metric, v.mean())}" for label, v in zip(labels, values, strict=True))
    yield Check(
        where="task coverage, training",
        expected=f"{quantity}: " + " > ".join(labels),
        observed=shown_values,
        detail=f"difference {signed(metric, difference)}",
        verdict=verdict(difference),
        size=f"last {steps} steps",
        artifacts=runs[0] + runs[1],
    )
