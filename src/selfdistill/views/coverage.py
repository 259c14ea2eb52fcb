"""results/coverage/{model}.csv: how the number of distinct training problems matters (arXiv 2603.24472, section 6.2).

One row per experiment x seed x benchmark at the last evaluated step, after one row per benchmark for the base; seed
`all` averages the seeds.

distinct         number of distinct training problems; `all` is the whole data set.
training_score   mean of reward_mean over the last ten training steps; training_length of completion_tokens_mean,
                 training_epistemic_count of epistemic_count_mean.
Other columns as in the ood table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfdistill.views.command import Plan, run
from selfdistill.views.evaluations import ALL_SEEDS, ARTIFACTS, BASE, Evaluation, evaluations
from selfdistill.views.tables import DIFFERENCES, MEASURES, as_csv, differences, measures
from selfdistill.views.training import REWARD, TOKENS, WORDS, final_values

TRAINING = {"training_score": REWARD, "training_length": TOKENS, "training_epistemic_count": WORDS}
COLUMNS = (
    "model", "experiment", "method", "context", "distinct", "seed", "step", "benchmark", "domain", *TRAINING,
    *MEASURES, *DIFFERENCES, *ARTIFACTS,
)  # fmt: skip
#: Name of the whole data set in the column `distinct`.
WHOLE = "all"


def build(plan: Plan) -> str:
    return as_csv(rows(evaluations(plan["rows"])), COLUMNS)


def rows(found: list[Evaluation]) -> list[dict[str, Any]]:
    """The table's rows in the plan's order, bases first."""
    bases = {e.benchmark: e for e in reversed(found)}
    table = [_row(bases[name], BASE, 0) for name in dict.fromkeys(e.benchmark for e in found)]
    return table + [row for evaluation in found for row in _experiment_rows(evaluation)]


def _experiment_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for seed in (*evaluation.seeds, ALL_SEEDS):
        yield _row(evaluation, seed, evaluation.steps[-1])


def _row(evaluation: Evaluation, seed: int | str, step: int) -> dict[str, Any]:
    about = evaluation.about
    measurement = evaluation.measurement(step, seed)
    trained: dict[str, Any] = {}
    if step:
        runs = evaluation.artifacts(step, seed)["train_artifact"].split(";")
        finals = {name: final_values(runs, column) for name, column in TRAINING.items()}
        trained = {name: None if values is None else float(values.mean()) for name, values in finals.items()}
        trained |= differences(measurement, evaluation.base_measurement())
    return {
        "model": about["model"],
        "experiment": about["experiment"] if step else BASE,
        "method": about["method"] if step else BASE,
        "context": about["context"] if step else None,
        "distinct": (about["distinct"] or WHOLE) if step else None,
        "seed": seed,
        "step": step,
        "benchmark": evaluation.benchmark,
        "domain": evaluation.domain,
        **measures(measurement),
        **trained,
        **evaluation.artifacts(step, seed),
    }


if __name__ == "__main__":
    run("coverage", build)
