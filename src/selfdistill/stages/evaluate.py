"""Checkpoints of one run on one benchmark, with one engine start. What is finished is kept."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing
from typing import Any

from selfdistill.artifacts.tables import read_rows
from selfdistill.run.job import Job
from selfdistill.schema.stages import EvaluateSpec
from selfdistill.stages.shared.generate import Drawing
from selfdistill.stages.shared.summaries import DESCRIBED, describe, read_prompts

RESUMES = True
SHARDED = True


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(EvaluateSpec)
    drawing = Drawing(job, spec, read_prompts(job.artifact))
    with closing(drawing):
        for step in spec.steps:
            drawing.draw(step)
    if not job.shard.is_whole:
        return {}
    rows = defaultdict(list)
    for row in read_rows(drawing.merge(spec.steps), DESCRIBED):
        rows[row["step"]].append(row)
    summary = {f"step-{step}": describe(rows[step]) for step in spec.steps}
    job.tee.say(str(summary))
    return summary
