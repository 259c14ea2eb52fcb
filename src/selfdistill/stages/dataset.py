"""Problem table from an external or procedural source: mapped, deduplicated, free of evaluation problems."""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfdistill.job import Job
from selfdistill.prompts import problem_id
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import DatasetSpec
from selfdistill.sources import load_problems
from selfdistill.tables import PROBLEMS, read_rows, write_rows


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(DatasetSpec)
    loaded, counts = load_problems(spec.source)
    excluded = {
        row["problem_id"]
        for _, other in job.artifact.inputs()
        for row in read_rows(other.payload / "problems.parquet", ["problem_id"])
    }
    kept_without_instruction = counts.pop("kept without the instruction", 0)
    dropped = Counter(counts)
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    source = spec.slug({})
    for problem in loaded:
        identity = problem_id(problem["question"])
        if identity in excluded:
            dropped["in an excluded data set"] += 1
        elif spec.deduplicate and identity in seen:
            dropped["duplicate"] += 1
        elif spec.limit is None or len(problems) < spec.limit:
            problems.append({**problem, "row_id": len(problems), "problem_id": identity, "source": source})
        else:
            dropped["beyond the limit"] += 1
        seen.add(identity)
    if not problems:
        raise UserError(f"{job.artifact.name}: no problem is left. Dropped: {dict(dropped)}")
    write_rows(job.artifact.payload / "problems.parquet", problems, PROBLEMS)
    summary = {
        "problems": len(problems),
        "distinct": len({p["problem_id"] for p in problems}),
        "families": dict(sorted(Counter(p["family"] for p in problems).items())),
        "dropped": dict(sorted(dropped.items())),
        "kept_without_instruction": kept_without_instruction,
    }
    job.tee.say(f"{summary['problems']} problems, {summary['distinct']} distinct; dropped: {summary['dropped']}")
    return summary
