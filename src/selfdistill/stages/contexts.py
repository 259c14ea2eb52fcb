"""Teacher contexts from graded completions: one text per problem; problems without one are counted by reason."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from selfdistill.artifacts.store import Artifact
from selfdistill.artifacts.tables import CONTEXTS, read_rows, write_rows
from selfdistill.contexts import Attempt, ProblemAttempts, build_contexts
from selfdistill.run.job import Job
from selfdistill.schema.stages import ContextsSpec

_NEEDED = ["problem_id", "row_id", "sample", "completion", "reward", "outcome", "stop_reason"]


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(ContextsSpec)
    problems = read_attempts(job.artifact.input("rollouts"), guided=spec.kind == "regenerated")
    contexts, missing = build_contexts(spec.kind, problems, instruction=spec.instruction, seed=spec.seed)
    write_rows(job.artifact.payload / "contexts.parquet", map(asdict, contexts), CONTEXTS)
    job.tee.print(f"{len(contexts)} of {len(problems)} problems have a context; missing: {dict(missing)}")
    return {"contexts": len(contexts), "problems": len(problems), "missing": dict(sorted(missing.items()))}


def read_attempts(rollouts: Artifact, *, guided: bool) -> list[ProblemAttempts]:
    """Completions by problem, in file order. `guided`: they were sampled with a solution in the prompt."""
    prompts = rollouts.input("prompts").payload / "prompts.parquet"
    questions = {row["problem_id"]: row for row in read_rows(prompts, ["problem_id", "question", "answer"])}
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    table = rollouts.payload / "rollouts.parquet"
    columns = _NEEDED + [name for name in ("feedback",) if name in pq.read_schema(table).names]
    for row in read_rows(table, columns):
        attempts[row.pop("problem_id")].append(Attempt(**row))
    return [
        ProblemAttempts(
            problem_id=name,
            question=questions[name]["question"],
            answer=questions[name]["answer"],
            attempts=() if guided else tuple(found),
            guided=tuple(found) if guided else (),
        )
        for name, found in attempts.items()
    ]
