"""results/curves/{experiment}.csv: every scalar of training, by seed and step.

The columns after `step` are those that the trainer wrote, in alphabetical order; an empty cell was not written at that
step. A step is one batch of rollouts with all its updates.
"""

from __future__ import annotations

from selfdistill.views.command import Plan, run
from selfdistill.views.tables import as_csv
from selfdistill.views.training import curves


def build(plan: Plan) -> str:
    rows = []
    for entry in plan["rows"]:
        for step, values in curves(entry["train_artifact"]).iterrows():
            about = {"experiment": entry["experiment"], "seed": entry["seed"], "step": step}
            rows.append(about | {name: float(value) for name, value in values.items()})
    scalars = sorted({name for row in rows for name in row} - {"experiment", "seed", "step"})
    return as_csv(rows, ("experiment", "seed", "step", *scalars))


if __name__ == "__main__":
    run("curves", build)
