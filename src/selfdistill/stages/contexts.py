"""Teacher contexts from graded completions: one text per problem; problems without one are counted by reason."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from selfdistill.artifacts.store import Artifact
from selfdistill.artifacts.tables import CONTEXTS, read_rows, write_rows
from selfdistill.contexts import Attempt, ProblemAttempts, build_contexts
from selfdistill.generation.loading import load_tokenizer
from selfdistill.run.job import Job, in_words
from selfdistill.schema.stages import ContextsSpec, RolloutsSpec
from selfdistill.stages.shared.models import model_folder
from selfdistill.thinking import Thinking

_NEEDED = ["problem_id", "row_id", "sample", "completion", "completion_ids", "reward", "outcome", "stop_reason"]


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(ContextsSpec)
    problems = read_attempts(job.artifact.input("rollouts"), guided=spec.kind == "regenerated")
    contexts, missing = build_contexts(
        spec.kind, problems, instruction=spec.instruction, seed=spec.seed, thinking=model_thinking(job.artifact, spec)
    )
    write_rows(job.artifact.payload / "contexts.parquet", map(asdict, contexts), CONTEXTS)
    job.tee.print(f"{len(contexts)} of {len(problems)} problems have a context; missing: {in_words(missing)}")
    summary = {"contexts": len(contexts), "problems": len(problems), "missing": dict(sorted(missing.items()))}
    if spec.kind == "solution_no_think":
        stripped = sum(context.answer.is_stripped for context in contexts)
        leaked = sum(context.answer.has_leaked for context in contexts)
        job.tee.print(f"thinking was removed from {stripped} of them; {leaked} still hold some")
        summary |= {"stripped": stripped, "leaked_thinking": leaked}
    return summary


def model_thinking(artifact: Artifact, spec: ContextsSpec) -> Thinking | None:
    """The marks of the model that sampled the completions; None where no text is stripped."""
    if spec.kind != "solution_no_think":
        return None
    rollouts = artifact.input("rollouts")
    folder = model_folder(rollouts.input("model"), rollouts.spec(RolloutsSpec).step)
    return Thinking.of(load_tokenizer(folder), spec.thinking_marks)


def read_attempts(rollouts: Artifact, *, guided: bool) -> list[ProblemAttempts]:
    """Completions by problem, in file order. `guided`: they were sampled with a solution in the prompt."""
    prompts = rollouts.input("prompts").payload / "prompts.parquet"
    columns = ["problem_id", "question", "answer", "prompt_ids"]
    questions = {row["problem_id"]: row for row in read_rows(prompts, columns)}
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    table = rollouts.payload / "rollouts.parquet"
    columns = _NEEDED + [name for name in ("feedback",) if name in pq.read_schema(table).names]
    for row in read_rows(table, columns):
        name = row.pop("problem_id")
        attempts[name].append(Attempt(**row, prompt_ids=questions[name]["prompt_ids"]))
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
