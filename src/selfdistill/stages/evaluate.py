"""Checkpoints of one run on one benchmark, with one engine start. Finished completions are kept."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from selfdistill.artifacts.tables import read_rows
from selfdistill.epistemic import count
from selfdistill.run.job import Job, in_words
from selfdistill.schema.shared import InterventionFields
from selfdistill.schema.stages import EvaluateSpec
from selfdistill.stages.shared.generate import RolloutJob, describe, read_prompts

RESUMES = True


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(EvaluateSpec)
    changes = InterventionFields(**spec.values_of(InterventionFields))
    with closing(RolloutJob(job, spec, read_prompts(job.artifact), changes)) as rollouts:
        for step in spec.steps:
            rollouts.sample(step)
    if job.shard.is_partial:
        return {}
    path = rollouts.merge(spec.steps)
    described = describe(path)
    summary = {f"step-{step}": described[step] for step in spec.steps}
    if spec.banned_words:
        for step, share in _share_with(path, spec.banned_words).items():
            summary[f"step-{step}"]["banned_word_share"] = share
    job.tee.log(in_words(summary))
    return summary


def _share_with(path: Path, words: list[str]) -> dict[int, float]:
    """Share of completions, by step, that hold a banned word nevertheless: in the prefix, or spelled in pieces."""
    found: dict[int, list[bool]] = {}
    for row in read_rows(path, ["step", "completion"]):
        found.setdefault(row["step"], []).append(any(count(row["completion"], words, "word").values()))
    return {step: sum(flags) / len(flags) for step, flags in found.items()}
