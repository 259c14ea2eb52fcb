"""How the number of distinct training problems matters (arXiv 2603.24472, section 6.2): table, claims and section.

results/coverage/{model}.csv has a row per benchmark for the base, then one per experiment, seed and benchmark at the
last evaluated step; its columns are described in docs/report.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from selfdistill.seeds import Runs, difference
from selfdistill.views.claims import Check, Comparison, base_link, link, order
from selfdistill.views.csv_table import DIFFERENCES, MEASURES, SOURCES, as_csv, evaluation_row
from selfdistill.views.figures import Line, lines
from selfdistill.views.measures import DENSITY, LENGTH, SCORE
from selfdistill.views.page import INTERVAL, Figure, Panel, Section, Table, key_cell, keys, method, num
from selfdistill.views.study import (
    BASE,
    FINAL_STEPS,
    OUT_OF_DISTRIBUTION,
    REWARD,
    TOKENS,
    WORDS,
    Evaluation,
    ModelStudy,
    evaluations,
    final_values,
)
from selfdistill.views.style import (
    BASE_LOOK,
    GRPO,
    NUMBER,
    PERCENT,
    SDPO,
    Kind,
    Look,
    interval,
    kinds,
    number,
    percent,
    shown,
    signed,
    whole_percent,
)

TRAINING = {"training_score": REWARD, "training_length": TOKENS, "training_epistemic_count": WORDS}
COVERAGE_COLUMNS = (
    "model", "experiment", "method", "context", "distinct", "seed", "step", "benchmark", "domain", *TRAINING,
    *MEASURES, *DIFFERENCES, *SOURCES,
)  # fmt: skip
#: Name of the whole data set as a number of distinct problems.
WHOLE = "all"
_AXIS = "distinct training problems"
_NARROW = 245
#: Experiments by number of distinct problems, for each method.
Sweeps = dict[Kind, list[Evaluation]]


def build_coverage(plan: dict[str, Any]) -> str:
    """results/coverage/{model}.csv."""
    found = evaluations(plan["rows"])
    first = {e.benchmark: e for e in reversed(found)}
    bases = [_row(first[name], BASE, 0) for name in dict.fromkeys(e.benchmark for e in found)]
    return as_csv([*bases, *(_row(e, seed, step) for e in found for seed, step in e.last_cells())], COVERAGE_COLUMNS)


def _row(evaluation: Evaluation, seed: int | str, step: int) -> dict[str, Any]:
    row = evaluation_row(evaluation, seed, step) | {"model": evaluation.base_row["model"]}
    if step == 0:
        return row | {"experiment": BASE, "method": BASE}
    finals = {name: final_values(evaluation.names("train_artifact", seed), scalar) for name, scalar in TRAINING.items()}
    trained = {name: None if values is None else float(values.mean()) for name, values in finals.items()}
    name, context = evaluation.kind
    return row | {"method": name, "context": context, "distinct": _size(evaluation), **trained}


def _size(evaluation: Evaluation) -> str:
    return str(evaluation.distinct or WHOLE)


def _problems(evaluation: Evaluation) -> str:
    """`8 problems`, or `all problems`."""
    return f"{_size(evaluation)} problems"


def _by_size(found: Sequence[Evaluation]) -> list[Evaluation]:
    """By number of distinct problems; the whole data set last."""
    return sorted(found, key=lambda e: (e.distinct is None, e.distinct or 0))


def _sweep(study: ModelStudy, kind: Kind, benchmark: str) -> list[Evaluation]:
    """Experiments of one method on a benchmark, by size."""
    return _by_size([e for e in study.coverage if e.kind == kind and e.benchmark == benchmark])


def _benchmarks(study: ModelStudy) -> list[str]:
    return list(dict.fromkeys(e.benchmark for e in study.coverage if e.domain == OUT_OF_DISTRIBUTION))


# --- claims -----------------------------------------------------------------------------------------------------------


def coverage_checks(study: ModelStudy) -> list[Check]:
    """The claims about the number of distinct problems that the study has the experiments for."""
    names = _benchmarks(study)
    found = [check for name in names for check in _on_benchmark(study, name)]
    return [*found, *(_in_training(study, names[0]) if names else ())]


def _on_benchmark(study: ModelStudy, benchmark: str) -> Iterator[Check]:
    """SDPO below the base at every size and worst at the smallest; GRPO better with more problems."""
    where = f"task coverage, {benchmark}"
    for evaluation in _sweep(study, SDPO, benchmark):
        yield from order(where, SCORE, [base_link(evaluation), link(f"SDPO on {_problems(evaluation)}", evaluation)])
    for kind, name in ((SDPO, "SDPO"), (GRPO, "GRPO")):
        swept = _sweep(study, kind, benchmark)
        if len(swept) > 1:
            yield from order(where, SCORE, [link(f"{name} on {_problems(e)}", e) for e in (swept[-1], swept[0])])


def _in_training(study: ModelStudy, benchmark: str) -> Iterator[Check]:
    """SDPO scores high on few problems only, in far shorter completions, and lags GRPO on many."""
    sdpo, grpo = _sweep(study, SDPO, benchmark), _sweep(study, GRPO, benchmark)
    if len(sdpo) > 1:
        yield from _training_order("training score", REWARD, SCORE, (("SDPO", sdpo[0]), ("SDPO", sdpo[-1])))
    if sdpo and grpo and sdpo[-1].distinct == grpo[-1].distinct:
        yield from _training_order("training score", REWARD, SCORE, (("GRPO", grpo[-1]), ("SDPO", sdpo[-1])))
    if sdpo and grpo and sdpo[0].distinct == grpo[0].distinct:
        yield from _training_order("length in training", TOKENS, LENGTH, (("GRPO", grpo[0]), ("SDPO", sdpo[0])))


def _training_order(quantity: str, scalar: str, metric: str, ends: Sequence[tuple[str, Evaluation]]) -> Iterator[Check]:
    """A training scalar is higher in the first runs than in the second, over seeds and the last training steps.

    Steps stand where problems stand elsewhere. They draw their batches independently, so pairing them by position
    widens or narrows nothing.
    """
    labels = [f"{name} on {_problems(evaluation)}" for name, evaluation in ends]
    runs = [evaluation.names("train_artifact") for _, evaluation in ends]
    values = [final_values(names, scalar) for names in runs]
    if values[0] is None or values[1] is None:
        return
    steps = min(v.shape[1] for v in values)
    compared = difference(*(Runs.of(v[:, -steps:], is_trained=True) for v in values))
    seeds = min(map(len, values))
    yield Check(
        where="task coverage, training",
        expected=f"{quantity}: " + " > ".join(labels),
        observed=", ".join(f"{label} {shown(metric, v.mean())}" for label, v in zip(labels, values, strict=True)),
        detail=f"difference {signed(metric, compared)}",
        comparisons=(Comparison.greater(compared),),
        size=f"last {steps} training steps, {seeds} seed{'s' * (seeds > 1)}",
        artifacts=(*runs[0], *runs[1]),
    )


# --- the report's section ---------------------------------------------------------------------------------------------


def coverage_section(study: ModelStudy) -> Section | None:
    """Training score, out-of-distribution score, length and density against the number of distinct problems."""
    blocks: list[Figure | Table] = []
    leads = []
    for name in _benchmarks(study):
        swept = {kind: _sweep(study, kind, name) for kind in kinds(e.base_row for e in study.coverage)}
        swept = {kind: found for kind, found in swept.items() if found}
        looks = {kind: _look(found, study) for kind, found in swept.items()}
        blocks += [_figure(name, swept, looks), _table(swept, looks)]
        leads += [_lead(found, looks[kind]) for kind, found in swept.items() if len(found) > 1]
    if not blocks:
        return None
    lead = " ".join(dict.fromkeys(leads)) or "All experiments were trained on the same number of distinct problems."
    return Section("coverage", "Number of distinct training problems", lead, blocks)


def _figure(name: str, swept: Sweeps, looks: dict[Kind, Look]) -> Figure:
    members = [evaluation for found in swept.values() for evaluation in found]
    ticks = list(dict.fromkeys(map(_size, _by_size(members))))
    rewards = [_reward_line(found, ticks, looks[kind]) for kind, found in swept.items()]
    panels = [Panel("Training score", lines(rewards, PERCENT, _AXIS, ticks, _NARROW))]
    first = members[0]
    for title, metric, scale in (("accuracy", SCORE, PERCENT), ("tokens", LENGTH, NUMBER),
                                 ("density", DENSITY, NUMBER)):  # fmt: skip
        series = [
            Line.of(looks[kind], [ticks.index(_size(e)) for e in found], [e.last().estimate(metric) for e in found])
            for kind, found in swept.items()
        ]
        series.append(Line(BASE_LOOK, range(len(ticks)), [first.base.mean(metric)] * len(ticks)))
        bounds = first.bounds() if metric == SCORE else ()
        panels.append(Panel(f"{name}: {title}", lines(series, scale, _AXIS, ticks, _NARROW, bounds)))
    caption = (
        f"Training score: mean of the last {FINAL_STEPS} steps, bars span the training seeds. Density: epistemic words "
        f"per 1,000 tokens. {name}: n = {first.last().n()} problems, k = {first.last().k}. {INTERVAL}. Grey: the base "
        "model. Dotted in accuracies: chance, where it is known, and 100 %."
    )
    sources = keys(name for evaluation in members for name in evaluation.names("evaluate_artifact"))
    return Figure(panels, caption, sources, [*looks.values(), BASE_LOOK])


def _reward_line(found: Sequence[Evaluation], ticks: Sequence[str], look: Look) -> Line:
    """Mean over seeds at each size; single seeds as ends of the vertical bar when there are several."""
    x, y, low, high = [], [], [], []
    for evaluation in found:
        runs = [final_values([row["train_artifact"]], REWARD) for row in evaluation.seeds.values()]
        scores = [float(values.mean()) for values in runs if values is not None]
        if scores:
            x.append(ticks.index(_size(evaluation)))
            y.append(sum(scores) / len(scores))
            low.append(min(scores))
            high.append(max(scores))
    return Line(look, x, y, low, high, has_markers=True)


def _table(swept: Sweeps, looks: dict[Kind, Look]) -> Table:
    header = ("method", "distinct", "seeds", "training score", "training tokens", "accuracy", "difference to base",
              "tokens", "epistemic words per 1,000 tokens", "artifacts")  # fmt: skip
    rows = []
    for kind, found in swept.items():
        for evaluation in found:
            last, runs = evaluation.last(), evaluation.names("train_artifact")
            score, tokens = final_values(runs, REWARD), final_values(runs, TOKENS)
            numbers = (
                _size(evaluation), len(evaluation.seeds),
                "–" if score is None else percent(score.mean()), "–" if tokens is None else number(tokens.mean()),
                interval(SCORE, last.estimate(SCORE)), signed(SCORE, evaluation.change(SCORE)),
                number(last.mean(LENGTH)), number(last.mean(DENSITY)),
            )  # fmt: skip
            artifacts = key_cell([*runs, *evaluation.names("evaluate_artifact")])
            rows.append([method(looks[kind]), *map(num, numbers), artifacts])
    return Table(header, rows, "Show the table", is_folded=True)


def _lead(found: Sequence[Evaluation], look: Look) -> str:
    """Training score and accuracy at the two ends of a sweep."""
    few, many = found[0], found[-1]
    scores = [final_values(e.names("train_artifact"), REWARD) for e in (few, many)]
    if scores[0] is None or scores[1] is None:
        return ""
    accuracy = [whole_percent(e.last().mean(SCORE)) for e in (few, many)]
    trained = [whole_percent(score.mean()) for score in scores]
    return (
        f"From {_size(few)} to {_problems(many)}, the training score of {look.label} {_moves(*trained)} and its "
        f"accuracy on {few.benchmark} {_moves(*accuracy)}."
    )


def _moves(before: str, after: str) -> str:
    """`goes from 18 % to 24 %`, or `stays at 84 %`."""
    return f"stays at {after}" if before == after else f"goes from {before} to {after}"


def _look(found: Sequence[Evaluation], study: ModelStudy) -> Look:
    """The look of the sweep's method: of its parent experiment, whose name starts that of every member."""
    names = [e.experiment for e in found]
    parent = next((name for name in names if name in study.looks), None)
    return study.looks[parent or next(n for n in study.looks if names[0].startswith(n))]
