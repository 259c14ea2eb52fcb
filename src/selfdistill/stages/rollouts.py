"""Completions of a model on prompts, with or without a teacher context, graded. What is finished is kept."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

from selfdistill.artifacts.tables import read_rows
from selfdistill.contexts import encode_context
from selfdistill.run.job import Job
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import RolloutsSpec
from selfdistill.stages.shared.generate import Drawing
from selfdistill.stages.shared.models import load_tokenizer
from selfdistill.stages.shared.summaries import DESCRIBED, describe, read_prompts

RESUMES = True
SHARDED = True


def main(job: Job) -> dict[str, Any]:
    artifact, spec = job.artifact, job.artifact.spec(RolloutsSpec)
    prompts, counts = read_prompts(artifact), {}
    if "contexts" in artifact.input_ids:
        tokenizer = load_tokenizer(artifact.input("model"), spec.step)
        prompts, counts = with_contexts(job, spec, tokenizer, prompts)
    drawing = Drawing(job, spec, prompts)
    with closing(drawing):
        drawing.draw(spec.step)
    if not job.shard.is_whole:
        return {}
    summary = describe(read_rows(drawing.merge([spec.step]), DESCRIBED)) | counts
    job.tee.say(str(summary))
    return summary


def with_contexts(
    job: Job, spec: RolloutsSpec, tokenizer: Any, prompts: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The prompts that have a context, with it; and how many had none or were cut to fit."""
    contexts = {
        row["problem_id"]: row for row in read_rows(job.artifact.input("contexts").payload / "contexts.parquet")
    }
    shown, truncated = [], 0
    for prompt in prompts:
        context = contexts.get(prompt["problem_id"])
        if context is None:
            continue
        ids, is_truncated = encode_context(
            tokenizer,
            json.loads(prompt["messages"]),
            context["kind"],
            context["context"],
            spec.reprompt,
            spec.thinking,
            spec.max_reprompt_tokens,
        )
        truncated += is_truncated
        shown.append({**prompt, "prompt_ids": ids})
    if not shown:
        raise UserError(f"none of {len(prompts)} prompts has a context.")
    return shown, {"prompts_without_context": len(prompts) - len(shown), "truncated_contexts": truncated}
