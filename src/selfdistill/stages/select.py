"""Problems that the base model sometimes solves: the first N with a solve rate in a range (paper, section 3)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from selfdistill.artifacts.tables import problem_columns, read_rows, write_rows
from selfdistill.run.job import Job
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import SelectSpec


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(SelectSpec)
    rewards: dict[str, list[float]] = defaultdict(list)
    for row in read_rows(job.artifact.input("rollouts").payload / "rollouts.parquet", ["problem_id", "reward"]):
        rewards[row["problem_id"]].append(row["reward"])
    rates = {name: sum(values) / len(values) for name, values in rewards.items()}
    inside = {name for name, rate in rates.items() if spec.min_solve_rate <= rate <= spec.max_solve_rate}
    chosen: dict[str, dict[str, Any]] = {}
    for row in read_rows(job.artifact.input("problems").payload / "problems.parquet"):
        if row["problem_id"] in inside and len(chosen) < spec.limit:
            chosen.setdefault(row["problem_id"], {**row, "row_id": len(chosen)})
    if not chosen:
        raise UserError(
            f"no problem has a solve rate between {spec.min_solve_rate} and {spec.max_solve_rate} "
            f"({len(rates)} problems; {sum(r == 0 for r in rates.values())} never solved, "
            f"{sum(r == 1 for r in rates.values())} always): widen the range, or use other problems."
        )
    write_rows(job.artifact.payload / "problems.parquet", chosen.values(), problem_columns(chosen.values()))
    return {"problems": len(chosen), "inside_window": len(inside), "candidates": len(rates)}
