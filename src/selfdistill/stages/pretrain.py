"""Pretraining of the toy world's base model."""

from __future__ import annotations

from typing import Any

from selfdistill.artifacts.tables import read_rows
from selfdistill.run.job import Job
from selfdistill.schema.stages import PretrainSpec
from selfdistill.training.pretrain import pretrain


def main(job: Job) -> dict[str, Any]:
    excluded = {
        row["question"]
        for _, dataset in job.artifact.inputs()
        for row in read_rows(dataset.payload / "problems.parquet", ["question"])
    }
    spec = job.artifact.spec(PretrainSpec)
    return pretrain(spec, excluded, job.artifact.payload / "model", job.steps(spec.steps, "pretraining"))
