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
from typing import Any

import torch

from selfdistill.generation.base import Sampler, sample_seed
from selfdistill.schema.errors import Interrupted, UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.training import metrics as measures
from selfdistill.training import optimiser as optim
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
from selfdistill.training.distributed import World
from selfdistill.training.methods import make_method
from selfdistill.training.network import Network
from selfdistill.training.rollouts import (
    Grade,
    Group,
    grade_groups,
    groups_from_json,
    groups_to_json,
    rollout_rows,
    sample_groups,
    step_prompts,
)
from selfdistill.training.state import Progress, generator_states, load_state, restore_generators, save_state
from selfdistill.training.teacher import TeacherNetwork
from selfdistill.training.update import Updater

_LOG = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def train(
    model: Any,
    tokenizer: Any,
    spec: TrainSpec,
    *,
    prompts: Sequence[TrainingPrompt],
    examples: Sequence[SftExample] | None,
    sampler: Sampler | None,
    grade: Grade | None,
    folder: TrainingFolder,
    runtime: StageRuntime,
    record_rollouts: Callable[[int, list[dict[str, Any]]], None],
    stop_requested: Callable[[], bool],
    report: Callable[[dict[str, Any]], None],
) -> TrainingSummary:
    """Train `model` (float32 weights, changed in place) as `spec` says, going on from `folder.state` if there is one.

    `grade` maps (completions, golds, stop reasons) to verdicts; `examples` is for SFT, the other inputs for on-policy
    methods. `record_rollouts(step, rows)` gets the rows of rollouts.parquet of each step, again after a resume for
    steps done again. `report` gets each step's metrics, and `{"step", "phase"}` as a sign of life before each phase.
    Both are called by the first process only.

    Raises Interrupted after `stop_requested()` (state saved: the same call goes on), UserError for unusable inputs,
    for training without signal, and for divergence.
    """
    _check_inputs(spec, prompts, examples, sampler)
    trainer = _Trainer(model, tokenizer, spec, runtime, folder, sampler, grade, record_rollouts, stop_requested, report)
    return trainer.run(prompts, examples or [])


def _check_inputs(spec: TrainSpec, prompts: Sequence[Any], examples: Sequence[Any] | None, sampler: Any) -> None:
    if spec.on_policy is None:
        if not examples:
            raise UserError("there are no completions to train on: the sft_data stage kept none.")
        if any(not example.completion_ids for example in examples):
            raise UserError("a completion to train on is empty: check the sft_data stage.")
    elif not prompts:
        raise UserError("there are no prompts to train on: check max_prompt_tokens and the data set.")
    elif sampler is None:
        raise ValueError("on-policy training needs a sampler")


class _Trainer:
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        spec: TrainSpec,
        runtime: StageRuntime,
        folder: TrainingFolder,
        sampler: Sampler | None,
        grade: Grade | None,
        record_rollouts: Callable[[int, list[dict[str, Any]]], None],
        stop_requested: Callable[[], bool],
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self.spec, self.runtime, self.folder = spec, runtime, folder
        self.tokenizer, self.sampler, self.grade = tokenizer, sampler, grade
        self.record_rollouts, self.stop_requested, self.report = record_rollouts, stop_requested, report
        torch.manual_seed(sample_seed(spec.seed, "torch"))
        self.world = World(runtime.device)
        self.model = model.to(self.world.device).train()
        if self.world.device.type == "cuda":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        config = model.config.get_text_config()
        self.method = make_method(spec, tokenizer, getattr(config, "max_position_embeddings", None))
        temperature = spec.on_policy.sampling.temperature if spec.on_policy else 1.0
        self.student = Network(model, temperature=temperature, compute_dtype=_DTYPES[spec.precision])
        self.student.check_head()
        self.teacher = TeacherNetwork(self.method.teacher, self.student) if self.method.teacher else None
        self.adamw = optim.make_adamw(model, spec.optimiser)
        is_epistemic = measures.epistemic_tokens(tokenizer, config.vocab_size) if self.teacher else None
        self.updater = Updater(
            method=self.method,
            student=self.student,
            teacher=self.teacher,
            adamw=self.adamw,
            settings=spec.optimiser,
            world=self.world,
            micro_batch_tokens=runtime.micro_batch_tokens,
            correction_clip=spec.on_policy.correction_clip if spec.on_policy else None,
            is_epistemic_V=None if is_epistemic is None else is_epistemic.to(self.world.device),
        )
        self.progress = Progress()
        self.seconds: dict[str, float] = {}

    def run(self, prompts: Sequence[TrainingPrompt], examples: Sequence[SftExample]) -> TrainingSummary:
        resumed_from = self._resume()
        last: dict[str, float] = {}
        for step in range(self.progress.step + 1, self.spec.steps + 1):
            started = time.perf_counter()
            self.seconds = {}
            optim.set_learning_rate(self.adamw, optim.learning_rate(self.spec.optimiser, step, self.spec.steps))
            if self.spec.on_policy is None:
                last = self._supervised_step(step, examples)
            else:
                last = self._on_policy_step(step, prompts)
            self._finish_step(step, last, time.perf_counter() - started)
        return TrainingSummary(self.spec.steps, self.spec.checkpoint_steps, resumed_from, last)

    def _supervised_step(self, step: int, examples: Sequence[SftExample]) -> dict[str, float]:
        chosen = [examples[index] for index in draw_indices(self.spec, step, len(examples))]
        rows = [Row(example.prompt_ids, example.completion_ids, RowPlan()) for example in chosen]
        tokens = sum(len(row.completion_ids) for row in rows)
        return {
            "completion_tokens_mean": tokens / len(rows),
            "tokens": tokens,
            **self._update(step, rows, self.spec.prompts_per_update),
        }

    def _on_policy_step(self, step: int, prompts: Sequence[TrainingPrompt]) -> dict[str, float]:
        groups = self._rollouts(step, step_prompts(self.spec, prompts, step))
        with self._phase(step, "contexts"):
            plans = [self.method.plan(group) for group in groups]
            if self.world.is_first:
                self.record_rollouts(step, rollout_rows(groups, step))
            found = measures.rollout_metrics(groups, plans)
            if self.teacher is not None:
                found |= measures.teacher_metrics(plans)
        self._check_contexts(step, found)
        rows = [
            Row(r.prompt.prompt_ids, r.completion.token_ids, plan, r.completion.logprobs)
            for group, group_plans in zip(groups, plans, strict=True)
            for r, plan in zip(group, group_plans, strict=True)
        ]
        size = self.spec.prompts_per_update * self.spec.on_policy.group_size
        found |= self._update(step, rows, size)
        with self._phase(step, "weights"):
            self.sampler.update_weights(self.model)
        return {**found, "tokens": sum(len(row.completion_ids) for row in rows)}

    def _rollouts(self, step: int, drawn: Sequence[TrainingPrompt]) -> list[Group]:
        """Graded groups of the step: those left by an interruption, or new ones."""
        if self.progress.pending is not None:
            groups = groups_from_json(self.progress.pending, drawn)
            self.progress.pending = None
            return groups
        with self._phase(step, "sampling"):
            completions = sample_groups(self.spec, drawn, step, self.sampler, self.world)
        with self._phase(step, "grading"):
            own = grade_groups(completions, self.world.own(drawn), self.tokenizer, self.grade)
            groups = self.world.gather(own, len(drawn))
        if self.world.is_any(self.stop_requested()):
            self.progress.pending = groups_to_json(groups)
            self._interrupt(step)
        return groups

    def _update(self, step: int, rows: Sequence[Row], mini_batch_rows: int) -> dict[str, float]:
        mini_batches = [rows[start : start + mini_batch_rows] for start in range(0, len(rows), mini_batch_rows)]
        with self._phase(step, "updates"):
            found = self.updater.run(mini_batches, step, lambda: self._sign_of_life(step, "updates"))
            if self.teacher is not None:
                self.teacher.update()
        return found

    def _finish_step(self, step: int, found: dict[str, float], elapsed: float) -> None:
        found["learning_rate"] = self.adamw.param_groups[0]["lr"]
        found["tokens_per_second"] = found.pop("tokens") / elapsed
        found |= {f"seconds_{name}": value for name, value in self.seconds.items()} | {"seconds_step": elapsed}
        found["peak_memory_mb"] = measures.peak_memory_mb(self.world.device)
        line = {"step": step, **found}
        if self.world.is_first:
            measures.append_metrics(self.folder.metrics, line)
            self.report(line)
        self.progress.step = step
        self._check_signal(found)
        if step in self.spec.checkpoint_steps and self.world.is_first:
            self._sign_of_life(step, "checkpoint")
            save_checkpoint(self.model, self.tokenizer, self.folder.checkpoints, step, _DTYPES[self.spec.precision])
        self.world.wait()
        if step == self.spec.steps:
            return
        if self.world.is_any(self.stop_requested()):
            self._interrupt(step)
        if step % self.runtime.state_every_steps == 0:
            self._save(step)

    def _check_contexts(self, step: int, found: dict[str, float]) -> None:
        share = found.get("teacher_prompt_truncated_share", 0.0)
        if share > self.method.max_truncated_share:
            raise UserError(
                f"step {step}: {share:.0%} of the demonstrations had to be cut to fit the teacher's prompt, more than "
                f"method.max_truncated_share = {self.method.max_truncated_share:.0%}. Raise method.max_reprompt_tokens "
                "or lower on_policy.sampling.max_tokens."
            )

    def _check_signal(self, found: dict[str, float]) -> None:
        progress, limit = self.progress, self.spec.max_steps_without_signal
        progress.steps_without_signal = 0 if found["supervised_tokens"] else progress.steps_without_signal + 1
        if progress.steps_without_signal >= limit:
            raise UserError(
                f"step {progress.step}: nothing to learn from in the last {limit} steps (zero supervised tokens; mean "
                f"reward {found.get('reward_mean', 0.0):.3f}, truncated {found.get('truncation_rate', 0.0):.0%}, usable "
                f"groups {found.get('usable_group_share', 0.0):.0%}). Use problems that the model sometimes solves, a "
                "longer max_tokens, or check the grader."
            )

    def _resume(self) -> int | None:
        """Load the newest intact state, if any; leave no trace of what was done after it."""
        for place in (self.folder.checkpoints, self.folder.state):
            place.mkdir(parents=True, exist_ok=True)
            if self.world.is_first:
                for leftover in place.glob(".step-*"):
                    shutil.rmtree(leftover)
        self.world.wait()
        loaded = load_state(self.folder.state, self.world.device)
        if loaded is not None:
            self.progress, tensors = loaded
            self.model.load_state_dict(tensors["policy"])
            self.adamw.load_state_dict(tensors["optimiser"])
            if self.teacher is not None and tensors["teacher"] is not None:
                self.teacher.load_state_dict(tensors["teacher"])
            restore_generators(tensors["generators"])
            if self.sampler is not None:
                self.sampler.update_weights(self.model)
            _LOG.info("resumed from the state of step %d", self.progress.step)
        if self.world.is_first:
            measures.drop_metrics_after(self.folder.metrics, self.progress.step)
        return self.progress.step if loaded is not None else None

    def _save(self, step: int) -> None:
        if self.world.is_first:
            self._sign_of_life(step, "state")
            tensors = {
                "policy": self.model.state_dict(),
                "optimiser": self.adamw.state_dict(),
                "teacher": self.teacher.state_dict() if self.teacher else None,
                "generators": generator_states(),
            }
            save_state(self.folder.state, self.progress, tensors)
        self.world.wait()

    def _interrupt(self, step: int) -> None:
        self._save(step)
        raise Interrupted(f"training stopped on request; its state after step {self.progress.step} is saved")

    def _sign_of_life(self, step: int, phase: str) -> None:
        if self.world.is_first:
            self.report({"step": step, "phase": phase})

    @contextmanager
    def _phase(self, step: int, name: str) -> Iterator[None]:
        self._sign_of_life(step, name)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
