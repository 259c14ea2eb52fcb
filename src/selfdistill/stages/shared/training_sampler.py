"""The sampler of a training: each training process has one, or a part of one, and samples in turns with training."""

from __future__ import annotations

from typing import Any

from selfdistill.artifacts.tables import read_rows
from selfdistill.generation import Sampler
from selfdistill.generation.loading import load_sampler
from selfdistill.run.job import Job
from selfdistill.schema.stages import TrainSpec
from selfdistill.stages.shared.models import model_folder


def make_training_sampler(job: Job, spec: TrainSpec, model: Any) -> Sampler | None:
    """The sampler of this process, or None where nothing is sampled. `model` is the one that will be trained."""
    used = spec.on_policy or spec.evaluation
    if used is None:
        return None
    return load_sampler(
        model_folder(job.artifact.input("model")),
        used.engine,
        job.runtime,
        max_positions=_max_positions(job, spec),
        trained_model=model,
        kv_cache_dtype=used.kv_cache_dtype,
    )


def _max_positions(job: Job, spec: TrainSpec) -> int:
    """The longest sequence that will be asked for, in training or in the evaluations during it."""
    lengths = []
    if spec.on_policy:
        prompt = spec.method.longest_sampled(_longest_prompt(job, "prompts"))
        lengths.append(prompt + spec.on_policy.sampling.max_tokens)
    if spec.evaluation:
        lengths.append(_longest_prompt(job, "evaluation_prompts") + spec.evaluation.sampling.max_tokens)
    return max(lengths)


def _longest_prompt(job: Job, role: str) -> int:
    rows = read_rows(job.artifact.input(role).payload / "prompts.parquet", ["prompt_ids"])
    return max((len(row["prompt_ids"]) for row in rows), default=0)
