"""Graded completions of a model on prompts, with or without a teacher context. Finished completions are kept."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

from selfdistill.artifacts.tables import read_rows
from selfdistill.contexts import encode_context
from selfdistill.generation.loading import load_tokenizer
from selfdistill.rollouts import Prompt
from selfdistill.run.job import Job, in_words
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import RolloutsSpec
from selfdistill.stages.shared.generate import RolloutJob, describe, read_prompts
from selfdistill.stages.shared.models import model_folder

RESUMES = True


def main(job: Job) -> dict[str, Any]:
    artifact, spec = job.artifact, job.artifact.spec(RolloutsSpec)
    prompts, counts = read_prompts(artifact), {}
    if "contexts" in artifact.input_ids:
        tokenizer = load_tokenizer(model_folder(artifact.input("model"), spec.step))
        prompts, counts = with_contexts(job, spec, tokenizer, prompts)
    with closing(RolloutJob(job, spec, prompts)) as rollouts:
        rollouts.sample(spec.step)
    if job.shard.is_partial:
        return {}
    summary = describe(rollouts.merge([spec.step]))[spec.step or 0] | counts
    job.tee.log(in_words(summary))
    return summary


def with_contexts(
    job: Job, spec: RolloutsSpec, tokenizer: Any, prompts: list[Prompt]
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts that have a context, rendered with it; counts of those without one and of truncated contexts."""
    contexts = {
        row["problem_id"]: row for row in read_rows(job.artifact.input("contexts").payload / "contexts.parquet")
    }
    shown, truncated = [], 0
    for prompt in prompts:
        context = contexts.get(prompt.problem_id)
        if context is None:
            continue
        ids, is_truncated = encode_context(
            tokenizer,
            prompt.messages,
            context["kind"],
            context["context"],
            spec.reprompt,
            spec.thinking,
            spec.max_reprompt_tokens,
        )
        truncated += is_truncated
        shown.append(replace(prompt, prompt_ids=ids))
    if not shown:
        raise UserError(f"none of the {len(prompts)} prompts has a context.")
    return shown, {"prompts_without_context": len(prompts) - len(shown), "truncated_contexts": truncated}
