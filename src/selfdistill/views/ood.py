"""results/ood/{experiment}.csv: scores in and out of distribution.

One row per seed x evaluated step x benchmark x family (`all`, then each family that the data names).

seed      a training seed; `base`: the base model; `all`: scores averaged over the seeds problem by problem, then
          bootstrapped over problems. Step 0 is the base, which has no training seed: it appears as `base` and,
          with the same numbers, as `all`, so that the rows of `all` are the whole curve.
n, k      problems, and completions per problem.
fractions avg_at_k, pass_at_k, truncation_rate and the differences lie between 0 and 1; intervals are 95 %.
epistemic_count is the mean number per completion by the paper's substring rule; the density is pooled over tokens.
difference_to_base is paired over problems; empty for the base itself.
*_artifact  `stage/slug-key`, several joined with a semicolon; train_artifact of the base is the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfdistill.views.command import Plan, run
from selfdistill.views.evaluations import ARTIFACTS, Evaluation, evaluations
from selfdistill.views.measures import ALL
from selfdistill.views.tables import DIFFERENCES, MEASURES, as_csv, differences, measures

COLUMNS = ("experiment", "seed", "step", "benchmark", "family", "domain", *MEASURES, *DIFFERENCES, *ARTIFACTS)


def build(plan: Plan) -> str:
    rows = [row for evaluation in evaluations(plan["rows"]) for row in evaluation_rows(evaluation)]
    return as_csv(rows, COLUMNS)


def evaluation_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """The table's rows of one experiment on one benchmark: base, each seed, all seeds."""
    base = evaluation.base_measurement()
    for seed, step in evaluation.cells():
        measurement = evaluation.measurement(step, seed)
        for family in (ALL, *measurement.families):
            yield {
                "experiment": evaluation.about["experiment"],
                "seed": seed,
                "step": step,
                "benchmark": evaluation.benchmark,
                "family": family,
                "domain": evaluation.domain,
                **measures(measurement, family),
                **(differences(measurement, base, family) if step else {}),
                **evaluation.artifacts(step, seed),
            }


if __name__ == "__main__":
    run("ood", build)
