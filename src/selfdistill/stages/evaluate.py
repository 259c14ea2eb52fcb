"""Checkpoints of one run on one benchmark, with one engine start. Finished completions are kept."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from selfdistill.run.job import Job
from selfdistill.schema.stages import EvaluateSpec
from selfdistill.stages.shared.generate import RolloutJob, describe, read_prompts

RESUMES = True


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(EvaluateSpec)
    with closing(RolloutJob(job, spec, read_prompts(job.artifact))) as rollouts:
        for step in spec.steps:
            rollouts.sample(step)
    if job.shard.is_partial:
        return {}
    described = describe(rollouts.merge(spec.steps))
    summary = {f"step-{step}": described[step] for step in spec.steps}
    job.tee.print(str(summary))
    return summary
