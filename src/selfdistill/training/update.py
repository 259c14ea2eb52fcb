"""All updates of one step: mini-batches, micro-batches, loss, gradient, optimiser.

Denominators come from the whole mini-batch before it is split (`micro_batches.py`), so that loss and gradient do not
depend on the split. Rows without a gradient are not forwarded; they only count in denominators. Shapes: N completion
tokens of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from selfdistill.losses import importance_weights, token_coefficients, token_logprobs
from selfdistill.schema.common import Optimiser
from selfdistill.schema.errors import UserError
from selfdistill.training import optimiser as optim
from selfdistill.training.data import CONTEXT, PLAIN, Row, RowStatistics
from selfdistill.training.distributed import World
from selfdistill.training.methods.base import Tokens, TrainingMethod
from selfdistill.training.micro_batches import MicroBatch, MicroBatchPlanner, active_places
from selfdistill.training.network import Network, Packed, backward_through_head, completion_logprobs
from selfdistill.training.prefix import can_share
from selfdistill.training.sharding import sum_over_nodes
from selfdistill.training.sums import TokenSums
from selfdistill.training.teacher import ShownLogits, TeacherNetwork
from selfdistill.training.token_statistics import row_statistics

#: Called before a pass; True where all ranks are at the same place of the step.
OnPass = Callable[[bool], None]


@dataclass
class _MiniBatch:
    """The rows of one update, this rank's part of them, and values of their tokens by place (None or empty: not known).

    `old_logprobs`: under the policy before the step. `advantages`: where the method weighs tokens.
    """

    rows: Sequence[Row]
    micro_batches: list[MicroBatch]
    old_logprobs: dict[int, Tensor] | None = field(default_factory=dict)
    advantages: dict[int, Tensor] = field(default_factory=dict)

    @property
    def contexts(self) -> list[str]:
        """Names of the contexts under which rows are forwarded, in the method's order."""
        return list(dict.fromkeys(n for row in self.rows if row.plan.has_gradient for n in row.plan.teachers))


@dataclass
class Updater:
    """What stays the same over steps. `is_epistemic_V` marks tokens that are epistemic words by themselves."""

    method: TrainingMethod
    student: Network
    teacher: TeacherNetwork | None
    adamw: torch.optim.Optimizer
    settings: Optimiser
    world: World
    micro_batch_tokens: int
    correction_clip: float | None
    is_epistemic_V: Tensor | None
    skips_bad_updates: bool = False
    shares_prompts: bool = True

    def run(self, mini_batches: Sequence[Sequence[Row]], step: int, on_pass: OnPass) -> dict[str, float]:
        """Do every update of a step; return its metrics. Raises UserError when a gradient is not finite, or leaves out
        that update and counts it.
        """
        context = CONTEXT if self.method.shows_context else PLAIN
        sums = TokenSums(self.student.device, self.is_epistemic_V, context)
        updates = [_MiniBatch(rows, self._micro_batches(rows)) for rows in mini_batches]
        if self.method.weighs:
            self._weigh(updates, sums, step, on_pass)
        else:
            for update in updates[1:]:
                update.old_logprobs = self._old_logprobs(update.micro_batches)
        # Before the first update the policy is the one that sampled, so its ratio is 1.
        updates[0].old_logprobs = None
        norms: list[float] = []
        for update in updates:
            on_pass(True)
            optim.clear_gradients(self.student.model)
            before = sums.values.clone()
            self._accumulate(update, sums, step, on_pass)
            if self.teacher is not None:
                self.teacher.prefixes.keep()
            norm = self._gradient_norm(step)
            if not math.isfinite(norm):
                sums.values.copy_(before)
                continue
            norms.append(norm)
            if self.teacher is not None:
                self.teacher.separate()
            self.adamw.step()
        self.world.all_reduce([sums.values])
        found = sums.metrics(
            norms,
            has_sampler=mini_batches[0][0].sampler_logprobs is not None,
            has_teacher=self.teacher is not None and self.method.shows_context,
            has_reference=self.teacher is not None and not self.method.shows_context,
        )
        if self.teacher is not None:
            found["teacher_tokens"] = sum(map(self._teacher_tokens, updates))
        if self.skips_bad_updates:
            found["skipped_updates"] = len(mini_batches) - len(norms)
        return found | {f"method_{name}": value for name, value in self.method.metrics().items()}

    def _weigh(self, updates: Sequence[_MiniBatch], sums: TokenSums, step: int, on_pass: OnPass) -> None:
        """Ask the method for the advantages of all tokens of the step, from statistics under the present policy."""
        own: dict[tuple[int, int], RowStatistics] = {}
        for number, update in enumerate(updates):
            weighed = self.method.weighed
            names = [name for name in update.contexts if weighed is None or name in weighed]
            for micro in update.micro_batches:
                on_pass(self.world.is_in_step)
                with ExitStack() as stack:
                    passes = {name: stack.enter_context(p) for name, p in self._passes(micro, names)}
                    found = row_statistics(micro.rows, self.student, self._pack_student(micro), passes)
                if not micro.counts:
                    continue
                own |= {(number, place): row for place, row in zip(micro.places, found, strict=True)}
                if not self.method.reads_logits:
                    sums.add_teacher(micro.rows, found)
        if self.teacher is not None:
            self.teacher.prefixes.keep()
        places = [(number, place) for number, update in enumerate(updates) for place in active_places(update.rows)]
        order = {place: index for index, place in enumerate(places)}
        rows = self.world.gather({order[place]: row for place, row in own.items()})
        for (number, place), weights in zip(places, self.method.weigh(rows, step), strict=True):
            updates[number].advantages[place] = torch.from_numpy(weights.astype(np.float32)).to(self.student.device)
        for (number, place), row in own.items():
            logprobs = torch.from_numpy(row.student.logprobs.astype(np.float32)).to(self.student.device)
            updates[number].old_logprobs[place] = logprobs

    def _teacher_tokens(self, update: _MiniBatch) -> int:
        """Tokens that the second network reads for an update, in all passes over all its rows."""
        method = self.method
        tokens = 0
        for place in active_places(update.rows):
            row = update.rows[place]
            for name, prompt in row.plan.teachers.items():
                is_weighed = method.weighs and (method.weighed is None or name in method.weighed)
                tokens += (is_weighed + method.reads_logits) * (len(prompt.ids) + len(row.completion_ids))
        return tokens

    def _gradient_norm(self, step: int) -> float:
        """Sum gradients over ranks and clip them; return the norm before clipping."""
        gradients = optim.gradients(self.student.model)
        if not self.world.is_sharded:
            self.world.all_reduce(gradients)
        norm = optim.clip_gradients(gradients, self.settings.max_grad_norm)
        if not math.isfinite(norm) and not self.skips_bad_updates:
            raise UserError(
                f"step {step}: the gradient norm is {norm}; training has diverged. Lower "
                "optimiser.learning_rate or lengthen optimiser.warmup_steps."
            )
        return norm

    def _micro_batches(self, rows: Sequence[Row]) -> list[MicroBatch]:
        """This rank's micro-batches of the rows that have a gradient."""
        planner = MicroBatchPlanner(
            rank=self.world.rank,
            ranks=self.world.size,
            in_step=self.world.is_sharded,
            can_share=self.shares_prompts and self.teacher is not None and can_share(self.student),
            unpadded=self.student.unpadded,
            budget=self.micro_batch_tokens,
        )
        return planner.plan(rows)

    def _old_logprobs(self, micro_batches: Sequence[MicroBatch]) -> dict[int, Tensor] | None:
        """Log-probs of the completions under the policy before the step, by place in the mini-batch."""
        if not micro_batches or micro_batches[0].rows[0].sampler_logprobs is None:
            return None
        found: dict[int, Tensor] = {}
        for micro in micro_batches:
            logprobs = completion_logprobs(self.student, self._pack_student(micro))
            if micro.counts:
                lengths = [len(row.completion_ids) for row in micro.rows]
                found |= dict(zip(micro.places, logprobs.split(lengths), strict=True))
        return found

    def _accumulate(self, update: _MiniBatch, sums: TokenSums, step: int, on_pass: OnPass) -> None:
        """Accumulate the gradients and sums of this rank's rows."""
        rows = update.rows
        coefficients_R = token_coefficients(
            torch.tensor([len(row.completion_ids) for row in rows]),
            torch.tensor([row.plan.is_supervised for row in rows]),
            self.method.aggregation,
        ).tolist()
        for number, micro in enumerate(update.micro_batches, start=1):
            on_pass(self.world.is_in_step)
            if self.world.has_copies:
                sum_over_nodes(self.student.model, is_last=number == len(update.micro_batches))
            weights = [coefficients_R[place] if micro.counts else 0.0 for place in micro.places]
            self._backward(micro, update, micro.per_token(weights, self.student.device), sums, step)

    def _backward(
        self, micro: MicroBatch, update: _MiniBatch, coefficients_N: Tensor, sums: TokenSums, step: int
    ) -> None:
        device = self.student.device
        packed = self._pack_student(micro)
        old_N = micro.gather(update.old_logprobs)
        advantages_N = micro.gather(update.advantages)
        if advantages_N is None:
            advantages_N = micro.per_token([row.plan.advantage for row in micro.rows], device)
        names = update.contexts if self.method.reads_logits else []
        (rows_N, positions_N), sampler_N = micro.rows_and_positions(device), micro.sampler_logprobs(device)
        with ExitStack() as stack:
            passes = {name: stack.enter_context(shown) for name, shown in self._passes(micro, names)}

            def loss_of_chunk(part: slice, student_logits: Tensor) -> Tensor:
                targets = packed.targets_N[part]
                logprobs = token_logprobs(student_logits, targets)
                old = logprobs.detach() if old_N is None else old_N[part]
                shown = {name: logits for name, logits_of in passes.items() if (logits := logits_of(part)) is not None}
                tokens = Tokens(
                    student_logits, targets, logprobs, old, advantages_N[part], shown, rows_N[part], positions_N[part],
                    step,
                )  # fmt: skip
                losses = self.method.token_loss(tokens)
                if sampler_N is not None:
                    losses = losses * importance_weights(old, sampler_N[part], self.correction_clip)
                loss = (losses * coefficients_N[part]).sum()
                if micro.counts:
                    sums.add(tokens, None if sampler_N is None else sampler_N[part], loss)
                return loss

            backward_through_head(self.student, self.student.hidden(packed), loss_of_chunk)

    def _passes(
        self, micro: MicroBatch, names: Sequence[str]
    ) -> Iterator[tuple[str, AbstractContextManager[Callable[[slice], ShownLogits | None]]]]:
        """The teacher's pass under each context that a row of the micro-batch has.

        With sharded weights all ranks do the passes of all `names`: those that no row needs read the student's prompts.
        """
        completions = [row.completion_ids for row in micro.rows]
        if self.teacher is not None:
            self.teacher.prefixes.keep(micro.kept_prompts())
        for name in names:
            prompts = [row.plan.teachers[name].ids if name in row.plan.teachers else None for row in micro.rows]
            reading = micro.reading(name)
            if any(prompts):
                yield name, self.teacher.shown(prompts, completions, reading)
            elif self.world.is_sharded:
                yield f"idle {name}", self.teacher.shown([row.prompt_ids for row in micro.rows], completions, reading)

    def _pack_student(self, micro: MicroBatch) -> Packed:
        return self.student.pack([row.prompt_ids for row in micro.rows], [row.completion_ids for row in micro.rows])
