"""The training loop: one engine for every method.

    prompts -> G completions each -> grade (-> demonstrations written anew) -> plans (teacher contexts, advantages)
            -> mini-batches -> updates
            -> teacher update -> weights to the sampler -> metrics, checkpoint, state

A *step* is one batch of rollouts with all its updates; an *update* is one optimiser step. Checkpoints, schedule and
moving average count steps. For SFT a step is a batch of given completions. Everything random is a function of the
spec's seed and the step, so a resumed run ends in the same weights as one that was never interrupted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from selfdistill.files import sync
from selfdistill.generation import Sampler
from selfdistill.rollouts import GradeFunction, Group, Prompt, rollout_rows
from selfdistill.schema.errors import Interrupted
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.training import guards, metrics, overlong, regeneration
from selfdistill.training import optimiser as optim
from selfdistill.training.checkpoint import save_checkpoint
from selfdistill.training.components import DTYPES, Components, build_components
from selfdistill.training.data import (
    Row,
    RowPlan,
    SftExample,
    TrainingFolder,
    TrainingSummary,
    draw_indices,
    mixed,
)
from selfdistill.training.distributed import World
from selfdistill.training.evaluation import Evaluation
from selfdistill.training.methods.encoding import encode_prompts
from selfdistill.training.profiling import profiled
from selfdistill.training.refill import sample_with_signal
from selfdistill.training.sampling import KeptGroups, StepSampling, Stopped
from selfdistill.training.state import Progress
from selfdistill.training.weights import plain_weights

_LOG = logging.getLogger(__name__)


def train(
    model: Any,
    tokenizer: Any,
    spec: TrainSpec,
    *,
    prompts: Sequence[Prompt],
    examples: Sequence[SftExample] | None,
    sampler: Sampler | None,
    grade: GradeFunction | None,
    folder: TrainingFolder,
    runtime: StageRuntime,
    world: World,
    base: Path | None = None,
    evaluation: Evaluation | None = None,
    record_rollouts: Callable[[int, list[dict[str, Any]]], None],
    kept: KeptGroups,
    stop_requested: Callable[[], bool],
    report: Callable[[dict[str, Any]], None],
) -> TrainingSummary:
    """Train `model` (float32 weights, changed in place) by `spec`, resuming from the state in `folder.state` if any.

    A model that will be sharded may be empty: its weights are then read from the folder `base`.
    `examples` is for SFT; `prompts`, `sampler` and `grade` are for on-policy methods. `record_rollouts(step, rows)`
    gets the rows of rollouts.parquet of each step, and again those of steps that a resumed run repeats; a thread calls
    it, and the step does not end before it has returned. `kept` holds finished groups between resume states. `report`
    gets the metrics of each step. Only the main rank calls these two. In between `report` gets `{"step", "phase"}` as a
    heartbeat, on every rank.

    Raises Interrupted after `stop_requested()` (the state is saved; the same call resumes), UserError for unusable
    inputs, training without a signal, and divergence.
    """
    guards.check_inputs(spec, prompts, examples, sampler, grade)
    components = build_components(model, tokenizer, spec, runtime, world, base)
    loop = _Loop(
        spec, tokenizer, prompts, examples or [], sampler, grade, evaluation, folder, runtime,
        record_rollouts, kept, stop_requested, report, components,
    )  # fmt: skip
    return loop.run()


@dataclass
class _Loop:
    spec: TrainSpec
    tokenizer: Any
    prompts: Sequence[Prompt]
    examples: Sequence[SftExample]
    sampler: Sampler | None
    grade: GradeFunction | None
    evaluation: Evaluation | None
    folder: TrainingFolder
    runtime: StageRuntime
    record_rollouts: Callable[[int, list[dict[str, Any]]], None]
    kept: KeptGroups
    stop_requested: Callable[[], bool]
    report: Callable[[dict[str, Any]], None]
    components: Components
    progress: Progress = field(default_factory=Progress)
    seconds: dict[str, float] = field(default_factory=dict)
    #: The newest step whose state is saved, or is being saved; step 0 is the base model.
    saved_step: int = 0
    sampling: StepSampling | None = None

    def run(self) -> TrainingSummary:
        resumed_from = self._resume()
        found: dict[str, float] = {}
        for step in range(self.progress.step + 1, self.spec.steps + 1):
            started = time.perf_counter()
            rate = optim.learning_rate(self.spec.optimiser, step, self.spec.steps)
            optim.set_learning_rate(self.components.adamw, rate)
            with profiled(self.folder.profile, step, self.runtime.profile_step, self.components.world):
                found = self._on_policy_step(step) if self.spec.on_policy else self._supervised_step(step)
            found |= self._evaluate(step)
            found = self._record(step, {**found, "learning_rate": rate}, time.perf_counter() - started)
            self._save(step)
        return TrainingSummary(self.spec.steps, self.spec.checkpoint_steps, resumed_from, found)

    def _supervised_step(self, step: int) -> dict[str, float]:
        chosen = [self.examples[index] for index in draw_indices(self.spec, step, len(self.examples))]
        rows = [Row(example.prompt_ids, example.completion_ids, RowPlan()) for example in chosen]
        tokens = sum(len(row.completion_ids) for row in rows)
        found = {"completion_tokens_mean": tokens / len(rows), "tokens": tokens}
        return found | self._update(step, rows, self.spec.prompts_per_update)

    def _on_policy_step(self, step: int) -> dict[str, float]:
        groups, drawn, counts = sample_with_signal(
            self.spec, step, self.prompts, lambda *chosen: self._rollouts(step, *chosen), self._plan
        )
        with self._phase(step, "contexts"):
            plans = encode_prompts(self._plan(groups), self.components.world, self._leave_if_stopped)
            found = metrics.rollout_metrics(drawn, plans) | overlong.counts(groups, self.spec.on_policy) | counts
            if self.components.method.shows_context:
                found |= metrics.teacher_metrics(plans)
            if self.spec.method.regenerated(self.spec.on_policy.group_size):
                found |= regeneration.counts(drawn)
        rows = [
            Row(rollout.prompt.prompt_ids, rollout.completion.token_ids, plan, rollout.completion.logprobs)
            for group, group_plans in zip(groups, plans, strict=True)
            for rollout, plan in zip(group, group_plans, strict=True)
        ]
        sampled = [rollout for group in drawn for rollout in group] + regeneration.regenerated(drawn)
        found["tokens"] = sum(len(rollout.completion.token_ids) for rollout in sampled)
        if self.spec.mini_batches == "mixed":
            rows = mixed(self.spec, step, rows)
        with self._recording(step, drawn):
            guards.check_stripped(step, plans)
            guards.check_contexts(step, found, self.components.method.max_truncated_share)
            return found | self._update(step, rows, self.spec.prompts_per_update * self.spec.on_policy.group_size)

    @contextmanager
    def _recording(self, step: int, groups: Sequence[Group]) -> Iterator[None]:
        """Write the rollouts of the step beside what is done within; at its end they are on disk. Raises as writing."""
        if not self.components.world.is_main:
            yield
            return
        with ThreadPoolExecutor(1) as writer:
            written = writer.submit(self.record_rollouts, step, rollout_rows(groups, step, self.spec.on_policy.grader))
            yield
            with self._phase(step, "writing"):
                written.result()

    def _evaluate(self, step: int) -> dict[str, float]:
        """Send the new weights to the sampler if it samples next; evaluate if this step is due."""
        is_due = self.evaluation is not None and self.evaluation.is_due(step, self.spec.steps)
        if self.sampler is not None and (is_due or self._samples_after(step)):
            with self._phase(step, "weights"):
                self._send_weights()
        if not is_due:
            return {}
        with self._phase(step, "evaluation"):
            found = self.evaluation.run(self.components.world, lambda *_: self._on_evaluation(step))
        if found is None:
            self._leave_step()
        return found

    def _samples_after(self, step: int) -> bool:
        """Whether the next thing that follows this step is sampling: an engine with new weights waits for it awake."""
        return self.spec.on_policy is not None and step < self.spec.steps

    def _send_weights(self) -> None:
        self.sampler.update_weights(partial(plain_weights, self.components.model))

    def _plan(self, groups: Sequence[Group]) -> list[list[RowPlan]]:
        settings = self.spec.on_policy
        plans = self.components.method.plan_step(overlong.penalised(groups, settings))
        return overlong.masked(groups, plans, settings)

    def _rollouts(self, step: int, prompts: Sequence[Prompt], first: int) -> list[Group]:
        """Graded groups of the step, from place `first` on, with what the method has written anew."""
        settings = self.spec.on_policy
        groups = self._sample(step, prompts, first, settings.group_size)
        shown = self.components.method.to_regenerate(overlong.penalised(groups, settings))
        if not shown:
            return groups
        place = regeneration.FIRST_PLACE + first * settings.group_size
        return regeneration.regenerate(
            groups, shown, lambda chosen: self._sample(step, chosen, place, 1), self.components.world
        )

    def _sample(self, step: int, prompts: Sequence[Prompt], first: int, samples: int) -> list[Group]:
        """Graded groups of the step, from place `first` on. At a stop, those that are finished are kept."""
        if self.sampling is not None and first > 0:
            self.sampling.save()  # What follows depends on these groups.
        self.sampling = StepSampling(
            self.spec, step, prompts, self.sampler, self.tokenizer, self.grade,
            self.kept, self.components.world, lambda name: self._phase(step, name),
            lambda *_: self._heartbeat(step, "sampling"), self.stop_requested, first, samples,
        )  # fmt: skip
        groups = self.sampling.run()
        if groups is None:
            self._interrupt()
        return groups

    def _update(self, step: int, rows: Sequence[Row], mini_batch_rows: int) -> dict[str, float]:
        mini_batches = [rows[start : start + mini_batch_rows] for start in range(0, len(rows), mini_batch_rows)]
        with self._phase(step, "updates"):
            found = self.components.updater.run(mini_batches, step, lambda is_common: self._on_pass(step, is_common))
            has_moved = found.get("skipped_updates", 0) < len(mini_batches)
            if self.components.teacher is not None:
                self.components.teacher.update(step, has_moved=has_moved)
        return found

    def _on_pass(self, step: int, is_common: bool) -> None:
        """Before a pass of the updates: leave if a stop was requested and the step can begin again.

        Only where all ranks are at the same place (`is_common`), since they must agree.
        """
        self._heartbeat(step, "updates")
        if is_common:
            self._leave_if_stopped()

    def _on_evaluation(self, step: int) -> None:
        self._heartbeat(step, "evaluation")
        if self._can_begin_again and self.stop_requested():
            raise Stopped

    def _leave_if_stopped(self) -> None:
        """Leave if a stop was requested on any rank and the step can begin again. Collective."""
        if self._can_begin_again and self.components.world.any(self.stop_requested()):
            self._leave_step()

    @property
    def _can_begin_again(self) -> bool:
        """Whether the state of the last whole step is saved: a stop within the next one loses its updates alone."""
        return self.saved_step == self.progress.step

    def _leave_step(self) -> NoReturn:
        """Stop within the step; its groups are kept."""
        if self.sampling is not None:
            self.sampling.save()
        self._interrupt()

    def _record(self, step: int, found: dict[str, float], elapsed: float) -> dict[str, float]:
        """Complete, write and report the metrics of the step. UserError where there is nothing to learn."""
        found["tokens_per_second"] = found.pop("tokens") / elapsed
        found |= {f"seconds_{name}": value for name, value in self.seconds.items()}
        self.seconds.clear()
        found |= {"seconds_step": elapsed, "peak_memory_mb": metrics.peak_memory_mb(self.components.world.device)}
        if self.components.world.is_main:
            line = {"step": step, **found}
            metrics.append_metrics(self.folder.metrics, line)
            self.report(line)
        self.progress.step = step
        guards.check_signal(self.progress, found, min(self.spec.max_steps_without_signal, self.spec.steps))
        guards.check_sampler_gap(step, found, self.runtime.max_sampler_gap)
        return found

    def _save(self, step: int) -> None:
        """Save checkpoint and state on schedule; exit if a stop was requested."""
        components = self.components
        if step in self.spec.checkpoint_steps:
            self._heartbeat(step, "checkpoint")
            save_checkpoint(
                components.model, self.tokenizer, self.folder.checkpoints, step, DTYPES[self.spec.precision],
                is_writer=components.world.is_main,
            )  # fmt: skip
        components.world.barrier()
        if step == self.spec.steps:
            if self.folder.last_state is not None:
                self._heartbeat(step, "state")
                components.save(self.folder.last_state, self.progress)
            components.finish_saving()
            return
        components.check_saving()
        if components.world.any(self.stop_requested()):
            self._interrupt()
        if step % self.runtime.steps_between_states == 0:
            self._save_state()

    def _save_state(self) -> None:
        """Begin to save the state; where weights are sharded it is whole later. The next step's metrics count this."""
        step = self.progress.step
        with self._phase(step, "state"):
            if self.components.world.is_main and self.folder.metrics.exists():
                sync(self.folder.metrics)  # A resumed run does not write the lines of these steps again.
            self.components.save(self.folder.state, self.progress, lambda: self.kept.drop(step))
        self.saved_step = step

    def _interrupt(self) -> NoReturn:
        if not self._can_begin_again:
            self._save_state()
        self.components.finish_saving()
        raise Interrupted(f"training stopped on request; its state after step {self.progress.step} is saved.")

    def _resume(self) -> int | None:
        """Load the newest intact state, if any, and remove what was written after it. Returns its step, or None."""
        is_main = self.components.world.is_main
        self._heartbeat(self.progress.step, "resuming")
        if self.components.world.any(self.stop_requested()):
            # An engine takes minutes to start, and a large state as long to read.
            raise Interrupted("training stopped on request before it began.")
        self.folder.prepare(clears=is_main)
        self.components.world.barrier()
        loaded = self.components.load(self.folder.state)
        if loaded is not None:
            self.progress, self.saved_step = loaded, loaded.step
            _LOG.info("resumed from the state of step %d", loaded.step)
            if self._samples_after(loaded.step):
                self._send_weights()
        if is_main:
            metrics.drop_metrics_after(self.folder.metrics, self.progress.step)
        return None if loaded is None else loaded.step

    def _heartbeat(self, step: int, phase: str) -> None:
        self.report({"step": step, "phase": phase})

    @contextmanager
    def _phase(self, step: int, name: str) -> Iterator[None]:
        self._heartbeat(step, name)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
