"""Training from a base model: checkpoints, on-policy rollouts, metrics by step. Resumes from its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfdistill.artifacts.tables import read_rows, rollout_columns, write_rows
from selfdistill.generation import Sampler
from selfdistill.generation.loading import empty_model, load_model, load_tokenizer
from selfdistill.grading import WorkerPool
from selfdistill.rollouts import Prompt, grade_function
from selfdistill.run.job import Job
from selfdistill.run.watchdog import STACKS, Watchdog
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import TrainSpec
from selfdistill.stages.shared.continue_run import continue_run
from selfdistill.stages.shared.generate import read_prompts
from selfdistill.stages.shared.kept_groups import GroupFiles
from selfdistill.stages.shared.models import model_folder
from selfdistill.stages.shared.outside_code import check_code, check_grader
from selfdistill.stages.shared.training_sampler import make_training_sampler
from selfdistill.training.data import SftExample, TrainingFolder
from selfdistill.training.distributed import World, launched_processes
from selfdistill.training.evaluation import Evaluation
from selfdistill.training.loop import train

RESUMES = True
DISTRIBUTED = True


def prepare(job: Job) -> None:
    """Before the training processes start: begin where a finished run of fewer steps ended, if it kept its state."""
    continue_run(job)


def main(job: Job) -> dict[str, Any]:
    artifact, spec = job.artifact, job.artifact.spec(TrainSpec)
    check_code(f"method {spec.method.name}", spec.method.outside_modules, spec.method_code)
    for graded in filter(None, (spec.on_policy, spec.evaluation)):
        check_grader(graded.grader)
    base = model_folder(artifact.input("model"))
    tokenizer = load_tokenizer(base)
    stacks = artifact.folder / STACKS
    alive = artifact.folder / "workers" / "alive" if launched_processes() > 1 else None
    with ExitStack() as stack:
        # First, since processes can wait in vain for each other, and an engine can hang while it starts.
        watchdog = stack.enter_context(Watchdog(job.runtime.watchdog_seconds, job.tee.print, stacks, alive))
        world = World.of(job.runtime)
        model, sampler = stack.enter_context(_policy(job, spec, base, world))
        pool = stack.enter_context(WorkerPool(job.runtime.grader_processes))
        summary = train(
            model,
            tokenizer,
            spec,
            prompts=training_prompts(job, spec) if spec.on_policy else [],
            examples=None if spec.on_policy else sft_examples(job, spec),
            sampler=sampler,
            grade=grade_function(spec.on_policy.grader, pool) if spec.on_policy else None,
            evaluation=make_evaluation(job, spec, sampler, tokenizer, pool),
            folder=TrainingFolder(
                artifact.payload / "checkpoints",
                artifact.state,
                artifact.metrics,
                artifact.folder / "profile",
                artifact.last_state if job.runtime.keep_last_state else None,
            ),
            runtime=job.runtime,
            world=world,
            base=base,
            record_rollouts=rollout_writer(job, spec),
            kept=GroupFiles(artifact.state / "rollouts", world.rank, world.size),
            stop_requested=lambda: job.stop_requested,
            report=step_reporter(job, spec.steps, watchdog),
        )
    # How often a run was interrupted is provenance, not a result: it must not change the manifest.
    return {name: value for name, value in asdict(summary).items() if name != "resumed_from"} | {
        "last_metrics": {name: value for name, value in summary.last_metrics.items() if is_result(name)}
    }


@contextmanager
def _policy(job: Job, spec: TrainSpec, base: Path, world: World) -> Iterator[tuple[Any, Sampler | None]]:
    """The model that will be trained, and its sampler, which is closed at the end."""
    model = empty_model(base) if world.is_sharded else load_model(base, world.device)
    sampler = make_training_sampler(job, spec, model)
    with closing(sampler) if sampler is not None else nullcontext():
        yield model, sampler


def training_prompts(job: Job, spec: TrainSpec) -> list[Prompt]:
    """The prompts; UserError where the teacher is to be shown reference solutions, and no problem has one."""
    prompts = read_prompts(job.artifact)
    if getattr(spec.method, "context", None) == "reference" and not any(prompt.solution for prompt in prompts):
        raise UserError(
            "method.context = reference: none of the problems has a solution. Map the data set's column with "
            "`source: {fields: {solution: COLUMN}}`."
        )
    return prompts


def is_result(metric: str) -> bool:
    """Whether a metric is decided by the spec, and not by the machine."""
    return not metric.startswith("seconds") and metric not in ("tokens_per_second", "peak_memory_mb")


def make_evaluation(job: Job, spec: TrainSpec, sampler: Any, tokenizer: Any, pool: WorkerPool) -> Evaluation | None:
    """The evaluation during training, or None where the recipe has none."""
    settings = spec.evaluation
    if settings is None:
        return None
    prompts = read_prompts(job.artifact, "evaluation_prompts")[: settings.limit]
    return Evaluation(settings, prompts, sampler, grade_function(settings.grader, pool), tokenizer)


def sft_examples(job: Job, spec: TrainSpec) -> list[SftExample]:
    rows = read_rows(job.artifact.input("examples").payload / "sft.parquet")
    fields = ("row_id", "problem_id", "prompt_ids", "completion_ids")
    chosen = [SftExample(**{f: row[f] for f in fields}) for row in rows if row["arm"] == spec.method.trains_on]
    if not chosen:
        raise UserError(f"{job.artifact.input('examples').name} holds no {spec.method.trains_on} completions.")
    return chosen


def rollout_writer(job: Job, spec: TrainSpec) -> Callable[[int, list[dict[str, Any]]], None]:
    def write(step: int, rows: list[dict[str, Any]]) -> None:
        path, settings = job.artifact.payload / spec.rollouts_file(step), spec.on_policy
        is_regenerated = spec.method.regenerated(settings.group_size) > 0
        columns = rollout_columns(settings.grader.kind, is_regenerated=is_regenerated)
        write_rows(path, rows, columns)

    return write


def step_reporter(job: Job, steps: int, watchdog: Watchdog) -> Callable[[dict[str, Any]], None]:
    """Log finished steps; pass on the heartbeat of each phase to the watchdog."""
    line = job.steps(steps, "training")

    def report(values: dict[str, Any]) -> None:
        if "phase" in values:
            watchdog.heartbeat(f"step {values['step']}: {values['phase']}")
        else:
            line(values)

    return report
