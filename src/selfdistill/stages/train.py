"""GRPO, SDPO or SFT from a base model: checkpoints, on-policy rollouts, metrics by step. Resumes where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict
from typing import Any

from selfdistill.artifacts.tables import read_rows, rollout_columns, write_rows
from selfdistill.grading import WorkerPool, check_machine, grade, shown_answer
from selfdistill.run.job import Job
from selfdistill.run.watchdog import Watchdog
from selfdistill.schema.common import Grader
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import TrainSpec
from selfdistill.stages.shared.models import load_model, load_tokenizer
from selfdistill.stages.shared.training_sampler import make_training_sampler
from selfdistill.training.data import SftExample, TrainingFolder, TrainingPrompt
from selfdistill.training.evaluation import Evaluation
from selfdistill.training.loop import train
from selfdistill.training.rollouts import Grade

RESUMES = True
DISTRIBUTED = True


def main(job: Job) -> dict[str, Any]:
    artifact, spec = job.artifact, job.artifact.spec(TrainSpec)
    if spec.on_policy:
        check_machine(spec.on_policy.grader)
    base = artifact.input("model")
    model, tokenizer = load_model(base, device=job.runtime.device), load_tokenizer(base)
    sampler = make_training_sampler(job, spec, model, tokenizer)
    stacks = artifact.folder / "hang.txt"
    with (
        closing(sampler) if sampler is not None else nullcontext(),
        WorkerPool(job.runtime.grader_processes) as pool,
        Watchdog(job.runtime.watchdog_seconds, job.tee.say, stacks) as watchdog,
    ):
        summary = train(
            model,
            tokenizer,
            spec,
            prompts=training_prompts(job) if spec.on_policy else [],
            examples=None if spec.on_policy else sft_examples(job, spec),
            sampler=sampler,
            grade=grader_of(spec.on_policy.grader, pool) if spec.on_policy else None,
            evaluation=make_evaluation(job, spec, sampler, tokenizer, pool),
            folder=TrainingFolder(
                artifact.payload / "checkpoints", artifact.state, artifact.metrics, artifact.folder / "profile"
            ),
            runtime=job.runtime,
            record_rollouts=rollout_writer(job, spec),
            stop_requested=lambda: job.stop_requested,
            report=step_reporter(job, spec.steps, watchdog),
        )
    # How often a run was interrupted is provenance, not a result: it must not change the manifest.
    return {name: value for name, value in asdict(summary).items() if name != "resumed_from"} | {
        "last_metrics": {name: value for name, value in summary.last_metrics.items() if is_result(name)}
    }


def is_result(metric: str) -> bool:
    """Whether a metric is decided by the spec, and not by the machine."""
    return not metric.startswith("seconds") and metric not in ("tokens_per_second", "peak_memory_mb")


def grader_of(settings: Grader, pool: WorkerPool) -> Grade:
    return lambda texts, golds, stops: grade(texts, golds, stops, settings, pool)


def make_evaluation(job: Job, spec: TrainSpec, sampler: Any, tokenizer: Any, pool: WorkerPool) -> Evaluation | None:
    """What is looked at while training, if anything."""
    settings = spec.evaluation
    if settings is None:
        return None
    prompts = training_prompts(job, "evaluation_prompts")[: settings.limit]
    return Evaluation(settings, prompts, sampler, grader_of(settings.grader, pool), tokenizer)


def training_prompts(job: Job, role: str = "prompts") -> list[TrainingPrompt]:
    rows = read_rows(job.artifact.input(role).payload / "prompts.parquet")
    fields = ("row_id", "problem_id", "family", "answer", "prompt_ids")
    return [TrainingPrompt(messages=json.loads(row["messages"]), **{f: row[f] for f in fields}) for row in rows]


def sft_examples(job: Job, spec: TrainSpec) -> list[SftExample]:
    rows = read_rows(job.artifact.input("examples").payload / "sft.parquet")
    fields = ("row_id", "problem_id", "prompt_ids", "completion_ids")
    chosen = [SftExample(**{f: row[f] for f in fields}) for row in rows if row["arm"] == spec.method.arm]
    if not chosen:
        raise UserError(f"{job.artifact.input('examples').name} holds no {spec.method.arm} completions.")
    return chosen


def rollout_writer(job: Job, spec: TrainSpec) -> Callable[[int, list[dict[str, Any]]], None]:
    folder = job.artifact.payload / "rollouts"

    def write(step: int, rows: list[dict[str, Any]]) -> None:
        grader = spec.on_policy.grader
        shown = ({**row, "answer": shown_answer(row["answer"], grader)} for row in rows)
        write_rows(folder / f"step-{step:06d}.parquet", shown, rollout_columns(grader.kind))

    return write


def step_reporter(job: Job, steps: int, watchdog: Watchdog) -> Callable[[dict[str, Any]], None]:
    """Finished steps go to the log; signs of life before each phase feed the watchdog."""
    line = job.steps(steps, "training")

    def report(values: dict[str, Any]) -> None:
        if "phase" in values:
            watchdog.alive(f"step {values['step']}: {values['phase']}")
        else:
            line(values)

    return report
