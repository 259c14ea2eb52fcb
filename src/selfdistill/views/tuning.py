"""An experiment with each value of its `sweep`, the last and the best checkpoint: results/tuning/{experiment}.csv.

The best checkpoint is chosen by the mean score over seeds on the same benchmark on which it is shown, so it is too
high by construction (docs/report.md 3); the last one is the fair comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfdistill.views.csv_table import DIFFERENCES, MEASURES, SOURCES, as_csv, evaluation_row
from selfdistill.views.figures import Dot, dots
from selfdistill.views.measures import SCORE
from selfdistill.views.page import INTERVAL, Figure, Panel, Section, Table, keys, num, text
from selfdistill.views.scores import BOUNDS
from selfdistill.views.study import ALL_SEEDS, Evaluation, ModelStudy, evaluations
from selfdistill.views.style import PERCENT, Look, interval, percent

TUNING_COLUMNS = ("experiment", "setting", "chosen", "seed", "step", "benchmark", "domain", *MEASURES, *DIFFERENCES,
                  *SOURCES)  # fmt: skip


def build_tuning(plan: dict[str, Any]) -> str:
    """results/tuning/{experiment}.csv: two rows per experiment and benchmark."""
    rows = [
        evaluation_row(evaluation, ALL_SEEDS, step) | {"setting": setting_of(evaluation), "chosen": chosen}
        for evaluation in evaluations(plan["rows"])
        for chosen, step in (("last", evaluation.steps[-1]), ("best", best_step(evaluation)))
    ]
    return as_csv(rows, TUNING_COLUMNS)


def best_step(evaluation: Evaluation) -> int:
    """The evaluated checkpoint with the highest mean score; the earliest of equals."""
    return max(evaluation.steps, key=lambda step: (evaluation.measurement(step).mean(SCORE), -step))


def setting_of(evaluation: Evaluation) -> str:
    """`optimiser.learning_rate = 1e-06`; of the swept experiment itself, that it is as its recipe says."""
    setting: dict[str, Any] = evaluation.base_row["setting"]
    return ", ".join(f"{path} = {value}" for path, value in setting.items()) or "as in the recipe"


def tuning_section(study: ModelStudy) -> Section | None:
    """The report's section; None without a sweep."""
    if not study.tuning:
        return None
    blocks: list[Any] = []
    for experiment in dict.fromkeys(e.base_row["tuned_from"] for e in study.tuning):
        found = [e for e in study.tuning if e.base_row["tuned_from"] == experiment]
        blocks += [_figure(experiment, found, study), _table(experiment, found)]
    lead = "What the methods reach with other settings: the last checkpoint of each, and its best."
    note = "The best checkpoint is chosen on the benchmark on which it is shown, so its score is too high."
    return Section("tuning", "Other settings", lead, blocks, [note])


def _figure(experiment: str, found: Sequence[Evaluation], study: ModelStudy) -> Figure:
    look = study.looks[experiment]
    panels = []
    for benchmark in dict.fromkeys(e.benchmark for e in found):
        shown = [e for e in found if e.benchmark == benchmark]
        plot = dots([_dots(e, look) for e in shown], PERCENT, shown[0].base.mean(SCORE), bounds=shown[0].bounds())
        panels.append(Panel(f"{benchmark}: accuracy", plot))
    caption = f"{look.label}: filled, the last checkpoint; hollow, the best. {INTERVAL}. {BOUNDS}"
    return Figure(panels, caption, keys(name for e in found for name in e.names("evaluate_artifact")))


def _dots(e: Evaluation, look: Look) -> list[Dot]:
    steps = ((e.steps[-1], False), (best_step(e), True))
    return [Dot(look, setting_of(e), *e.measurement(step).estimate(SCORE), is_hollow=best) for step, best in steps]


def _table(experiment: str, found: Sequence[Evaluation]) -> Table:
    rows = [
        [text(setting_of(e)), text(e.benchmark), num(interval(SCORE, e.last().estimate(SCORE))), num(best_step(e)),
         num(percent(e.measurement(best_step(e)).mean(SCORE))), num(len(e.seeds))]
        for e in found
    ]  # fmt: skip
    header = ("setting", "benchmark", "last checkpoint", "best step", "best", "seeds")
    return Table(header, rows, f"{experiment}, by setting")
