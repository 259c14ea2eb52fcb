"""The training loop: one engine for every method.

    prompts -> G completions each -> grade -> plans (teacher contexts, advantages) -> mini-batches -> updates
            -> teacher update -> weights to the sampler -> metrics, checkpoint, state

A *step* is one batch of rollouts with all its updates; an *update* is one optimiser step. Checkpoints, schedule and
moving average count steps. For SFT a step is a batch of given completions. Everything random is a function of the
spec's seed and the step, so an interrupted run goes on as if nothing had happened.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from selfdistill.generation.base import Sampler
from selfdistill.schema.errors import Interrupted
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.training import guards, metrics
from selfdistill.training import optimiser as optim
from selfdistill.training import rollouts as on_policy
from selfdistill.training.checkpoint import save_checkpoint
from selfdistill.training.data import (
    Row,
    RowPlan,
    SftExample,
    TrainingFolder,
    TrainingPrompt,
    TrainingSummary,
    draw_indices,
)
from selfdistill.training.evaluation import Evaluation
from selfdistill.training.parts import DTYPES, Parts, build_parts
from selfdistill.training.profiling import profiled
from selfdistill.training.state import Progress
from selfdistill.training.weights import plain_weights

_LOG = logging.getLogger(__name__)


def train(
    model: Any,
    tokenizer: Any,
    spec: TrainSpec,
    *,
    prompts: Sequence[TrainingPrompt],
    examples: Sequence[SftExample] | None,
    sampler: Sampler | None,
    grade: on_policy.Grade | None,
    folder: TrainingFolder,
    runtime: StageRuntime,
    evaluation: Evaluation | None = None,
    record_rollouts: Callable[[int, list[dict[str, Any]]], None],
    stop_requested: Callable[[], bool],
    report: Callable[[dict[str, Any]], None],
) -> TrainingSummary:
    """Train `model` (float32 weights, changed in place) as `spec` says, going on from `folder.state` if there is one.

    `grade` maps (completions, golds, stop reasons) to verdicts; `examples` is for SFT, the other inputs for on-policy
    methods. `record_rollouts(step, rows)` gets the rows of rollouts.parquet of each step, again after a resume for
    steps done again. `report` gets each step's metrics, and `{"step", "phase"}` as a sign of life in between.
    Both are called by the first process only.

    Raises Interrupted after `stop_requested()` (state saved: the same call goes on), UserError for unusable inputs,
    for training without signal, and for divergence.
    """
    guards.check_inputs(spec, prompts, examples, sampler, grade)
    parts = build_parts(model, tokenizer, spec, runtime)
    loop = _Loop(
        spec, tokenizer, prompts, examples or [], sampler, grade, evaluation, folder, runtime,
        record_rollouts, stop_requested, report, parts,
    )  # fmt: skip
    return loop.run()


@dataclass
class _Loop:
    spec: TrainSpec
    tokenizer: Any
    prompts: Sequence[TrainingPrompt]
    examples: Sequence[SftExample]
    sampler: Sampler | None
    grade: on_policy.Grade | None
    evaluation: Evaluation | None
    folder: TrainingFolder
    runtime: StageRuntime
    record_rollouts: Callable[[int, list[dict[str, Any]]], None]
    stop_requested: Callable[[], bool]
    report: Callable[[dict[str, Any]], None]
    parts: Parts
    progress: Progress = field(default_factory=Progress)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> TrainingSummary:
        resumed_from = self._resume()
        found: dict[str, float] = {}
        for step in range(self.progress.step + 1, self.spec.steps + 1):
            started = time.perf_counter()
            self.seconds.clear()
            rate = optim.learning_rate(self.spec.optimiser, step, self.spec.steps)
            optim.set_learning_rate(self.parts.adamw, rate)
            with profiled(self.folder.profile, step, self.runtime.profile_step, self.parts.world):
                found = self._on_policy_step(step) if self.spec.on_policy else self._supervised_step(step)
            found |= self._evaluate(step)
            found = self._record(step, {**found, "learning_rate": rate}, time.perf_counter() - started)
            self._keep(step)
        return TrainingSummary(self.spec.steps, self.spec.checkpoint_steps, resumed_from, found)

    def _supervised_step(self, step: int) -> dict[str, float]:
        chosen = [self.examples[index] for index in draw_indices(self.spec, step, len(self.examples))]
        rows = [Row(example.prompt_ids, example.completion_ids, RowPlan()) for example in chosen]
        tokens = sum(len(row.completion_ids) for row in rows)
        found = {"completion_tokens_mean": tokens / len(rows), "tokens": tokens}
        return found | self._update(step, rows, self.spec.prompts_per_update)

    def _on_policy_step(self, step: int) -> dict[str, float]:
        groups = self._rollouts(step)
        with self._phase(step, "contexts"):
            plans = [self.parts.method.plan(group) for group in groups]
            found = metrics.rollout_metrics(groups, plans)
            if self.parts.method.shows_context:
                found |= metrics.teacher_metrics(plans)
            if self.parts.world.is_first:
                self.record_rollouts(step, on_policy.rollout_rows(groups, step))
        guards.check_contexts(step, found, self.parts.method.max_truncated_share)
        rows = [
            Row(rollout.prompt.prompt_ids, rollout.completion.token_ids, plan, rollout.completion.logprobs)
            for group, group_plans in zip(groups, plans, strict=True)
            for rollout, plan in zip(group, group_plans, strict=True)
        ]
        found["tokens"] = sum(len(row.completion_ids) for row in rows)
        found |= self._update(step, rows, self.spec.prompts_per_update * self.spec.on_policy.group_size)
        return found

    def _evaluate(self, step: int) -> dict[str, float]:
        """Send the new weights to the sampler where it will be used; look at the benchmark where that is due."""
        is_due = self.evaluation is not None and self.evaluation.is_due(step, self.spec.steps)
        samples_next = self.spec.on_policy is not None and step < self.spec.steps
        if self.sampler is not None and (is_due or samples_next):
            with self._phase(step, "weights"):
                self.sampler.update_weights(self._plain_weights)
        if not is_due:
            return {}
        with self._phase(step, "evaluation"):
            return self.evaluation.run(self.parts.world, lambda *_: self._sign_of_life(step, "evaluation"))

    def _plain_weights(self) -> Iterator[tuple[str, Any]]:
        return plain_weights(self.parts.model)

    def _rollouts(self, step: int) -> list[on_policy.Group]:
        """Graded groups of the step: those an interruption has left, or new ones."""
        world = self.parts.world
        drawn = on_policy.step_prompts(self.spec, self.prompts, step)
        if self.progress.pending is not None:
            groups = on_policy.groups_from_json(self.progress.pending, drawn)
            self.progress.pending = None
            return groups
        with self._phase(step, "sampling"):
            completions = on_policy.sample_groups(
                self.spec, drawn, step, self.sampler, world, lambda *_: self._while_sampling(step)
            )
        with self._phase(step, "grading"):
            own = on_policy.grade_groups(completions, world.own(drawn), self.tokenizer, self.grade)
            groups = world.gather(own, len(drawn))
        if world.is_any(self.stop_requested()):
            self.progress.pending = on_policy.groups_to_json(groups)
            self._interrupt()
        return groups

    def _update(self, step: int, rows: Sequence[Row], mini_batch_rows: int) -> dict[str, float]:
        mini_batches = [rows[start : start + mini_batch_rows] for start in range(0, len(rows), mini_batch_rows)]
        with self._phase(step, "updates"):
            found = self.parts.updater.run(mini_batches, step, lambda: self._sign_of_life(step, "updates"))
            if self.parts.teacher is not None:
                self.parts.teacher.update()
        return found

    def _record(self, step: int, found: dict[str, float], elapsed: float) -> dict[str, float]:
        """Complete, write and report the step's metrics; stop where there is nothing to learn."""
        found["tokens_per_second"] = found.pop("tokens") / elapsed
        found |= {f"seconds_{name}": value for name, value in self.seconds.items()}
        found |= {"seconds_step": elapsed, "peak_memory_mb": metrics.peak_memory_mb(self.parts.world.device)}
        if self.parts.world.is_first:
            line = {"step": step, **found}
            metrics.append_metrics(self.folder.metrics, line)
            self.report(line)
        self.progress.step = step
        guards.check_signal(self.progress, found, self.spec.max_steps_without_signal)
        guards.check_sampler_gap(step, found, self.runtime.max_sampler_gap)
        return found

    def _keep(self, step: int) -> None:
        """Checkpoint and state where they are due; leave where that is wished."""
        parts = self.parts
        if step in self.spec.checkpoint_steps:
            self._sign_of_life(step, "checkpoint")
            save_checkpoint(
                parts.model, self.tokenizer, self.folder.checkpoints, step, DTYPES[self.spec.precision],
                is_writer=parts.world.is_first,
            )  # fmt: skip
        parts.world.wait()
        if step == self.spec.steps:
            return
        if parts.world.is_any(self.stop_requested()):
            self._interrupt()
        if step % self.runtime.state_every_steps == 0:
            self._sign_of_life(step, "state")
            parts.save(self.folder.state, self.progress)

    def _interrupt(self) -> None:
        self._sign_of_life(self.progress.step, "state")
        self.parts.save(self.folder.state, self.progress)
        raise Interrupted(f"training stopped on request; its state after step {self.progress.step} is saved.")

    def _resume(self) -> int | None:
        """Load the newest intact state, if any; remove every trace of what was done after it."""
        is_first = self.parts.world.is_first
        for place in (self.folder.checkpoints, self.folder.state):
            place.mkdir(parents=True, exist_ok=True)
            for leftover in place.glob(".step-*") if is_first else ():
                shutil.rmtree(leftover)
        self.parts.world.wait()
        loaded = self.parts.load(self.folder.state)
        if loaded is not None:
            self.progress = loaded
            _LOG.info("resumed from the state of step %d", loaded.step)
            if self.sampler is not None:
                self.sampler.update_weights(self._plain_weights)
        if is_first:
            metrics.drop_metrics_after(self.folder.metrics, self.progress.step)
        return None if loaded is None else loaded.step

    def _while_sampling(self, step: int) -> None:
        """A step's sampling can take longer than the grace before a kill: leave at once, the weights are unchanged.

        Only where no other process would wait in vain; with several the wish is heard after sampling.
        """
        self._sign_of_life(step, "sampling")
        if self.parts.world.size == 1 and self.stop_requested():
            self._interrupt()

    def _sign_of_life(self, step: int, phase: str) -> None:
        if self.parts.world.is_first:
            self.report({"step": step, "phase": phase})

    @contextmanager
    def _phase(self, step: int, name: str) -> Iterator[None]:
        self._sign_of_life(step, name)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
