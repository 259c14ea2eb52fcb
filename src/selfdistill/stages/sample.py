"""Task coverage: n distinct problems of a data set, each repeated (paper, section 6.2).

Subsets with the same seed are nested: the 8 are among the 64, the 64 among the 512.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selfdistill.artifacts.tables import problem_columns, read_rows, write_rows
from selfdistill.run.job import Job
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import SampleSpec


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(SampleSpec)
    first: dict[str, dict[str, Any]] = {}
    for row in read_rows(job.artifact.input("problems").payload / "problems.parquet"):
        first.setdefault(row["problem_id"], row)
    if spec.distinct > len(first):
        raise UserError(f"distinct: {spec.distinct} is more than the {len(first)} distinct problems of the data set.")
    # One random order; its first n problems are the subset, so a smaller subset is contained in a larger one.
    order = np.random.default_rng(spec.seed).permutation(sorted(first))
    chosen = [first[name] for name in order[: spec.distinct]]
    rows = [{**row, "row_id": index} for index, row in enumerate(chosen * spec.repeats)]
    write_rows(job.artifact.payload / "problems.parquet", rows, problem_columns(rows))
    return {"problems": len(rows), "distinct": spec.distinct}
