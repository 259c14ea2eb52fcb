"""All updates of one step: mini-batches, micro-batches, loss, gradient, optimiser.

Denominators come from the whole mini-batch before it is split, so that loss and gradient do not depend on how it is
split. Rows without gradient are not forwarded; they only count. Shapes: N completion tokens of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.losses import importance_weights, token_coefficients, token_logprobs
from selfdistill.schema.common import Optimiser
from selfdistill.schema.errors import UserError
from selfdistill.training import optimiser as optim
from selfdistill.training.data import Row, plan_micro_batches
from selfdistill.training.distributed import World
from selfdistill.training.methods.base import Tokens, TrainingMethod
from selfdistill.training.network import Network, Packed, backward_through_head, completion_logprobs, pack
from selfdistill.training.teacher import TeacherNetwork

#: What is summed over tokens during a step, in this order.
_SUMS = ("tokens", "loss", "entropy", "sampler_gap", "epistemic", "gap_epistemic", "gap_other")


@dataclass
class Updater:
    """Holds what stays the same over steps. `is_epistemic_V` marks single tokens that are uncertainty words."""

    method: TrainingMethod
    student: Network
    teacher: TeacherNetwork | None
    adamw: torch.optim.Optimizer
    settings: Optimiser
    world: World
    micro_batch_tokens: int
    correction_clip: float | None
    is_epistemic_V: Tensor | None

    def run(self, mini_batches: Sequence[Sequence[Row]], step: int, alive: Callable[[], None]) -> dict[str, float]:
        """Do every update of a step; return its metrics. Raises UserError when loss or gradient is not finite."""
        own = [self._own_rows(rows) for rows in mini_batches]
        # The first update starts from the sampling policy itself: its ratio is 1 without looking.
        old = [None, *(self._old_logprobs(rows) for rows in own[1:])]
        sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=self.student.device)
        norms = []
        for rows, own_rows, old_logprobs in zip(mini_batches, own, old, strict=True):
            optim.clear_gradients(self.student.model)
            self._accumulate(rows, own_rows, old_logprobs, sums, alive)
            gradients = optim.gradients(self.student.model)
            self.world.add_up(gradients)
            norms.append(optim.clip_gradients(gradients, self.settings.max_grad_norm))
            if not math.isfinite(norms[-1]):
                raise UserError(
                    f"step {step}: the gradient norm is {norms[-1]}; training has diverged. Lower "
                    "optimiser.learning_rate or lengthen optimiser.warmup_steps."
                )
            self.adamw.step()
        self.world.add_up([sums])
        return _metrics(
            dict(zip(_SUMS, sums.tolist(), strict=True)),
            norms,
            has_sampler=mini_batches[0][0].sampler_logprobs is not None,
            has_teacher=self.teacher is not None,
        )

    def _own_rows(self, rows: Sequence[Row]) -> list[tuple[int, Row]]:
        """This process's share of the rows that have a gradient, with their places in the mini-batch."""
        active = [(place, row) for place, row in enumerate(rows) if row.plan.has_gradient and row.completion_ids]
        active.sort(key=lambda item: len(item[1].prompt_ids) + len(item[1].completion_ids))
        return self.world.own(active)

    def _micro_batches(self, own_rows: Sequence[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
        student = [len(row.prompt_ids) + len(row.completion_ids) for _, row in own_rows]
        teacher = [
            len(row.plan.teacher_prompt_ids) + len(row.completion_ids) if row.plan.teacher_prompt_ids else 0
            for _, row in own_rows
        ]
        plan = plan_micro_batches(student, teacher, self.micro_batch_tokens)
        return [[own_rows[index] for index in micro] for micro in plan]

    def _old_logprobs(self, own_rows: Sequence[tuple[int, Row]]) -> dict[int, Tensor] | None:
        """Log-probs of the completions under the policy before the step, by place in the mini-batch."""
        if not any(row.sampler_logprobs is not None for _, row in own_rows):
            return None
        found: dict[int, Tensor] = {}
        for micro in self._micro_batches(own_rows):
            packed = self._pack_student(micro)
            logprobs = completion_logprobs(self.student, packed)
            lengths = [len(row.completion_ids) for _, row in micro]
            found |= dict(zip((place for place, _ in micro), logprobs.split(lengths), strict=True))
        return found

    def _accumulate(
        self,
        rows: Sequence[Row],
        own_rows: Sequence[tuple[int, Row]],
        old_logprobs: dict[int, Tensor] | None,
        sums: Tensor,
        alive: Callable[[], None],
    ) -> None:
        """Gradients and sums of this process's rows."""
        coefficients_R = token_coefficients(
            torch.tensor([len(row.completion_ids) for row in rows]),
            torch.tensor([row.plan.is_supervised for row in rows]),
            self.method.aggregation,
        ).tolist()
        for micro in self._micro_batches(own_rows):
            alive()
            old_N = None if old_logprobs is None else torch.cat([old_logprobs[place] for place, _ in micro])
            coefficients_N = self._per_token(micro, [coefficients_R[place] for place, _ in micro])
            self._backward([row for _, row in micro], coefficients_N, old_N, sums)

    def _backward(self, rows: Sequence[Row], coefficients_N: Tensor, old_N: Tensor | None, sums: Tensor) -> None:
        places = list(enumerate(rows))
        packed = self._pack_student(places)
        teacher_hidden, teacher_network = None, None
        if self.teacher is not None:
            teacher_network = self.teacher.network
            teacher_hidden = self._teacher_hidden(rows)
        advantages_N = self._per_token(places, [row.plan.advantage for row in rows])
        sampler_N = None
        if rows[0].sampler_logprobs is not None:
            flat = np.concatenate([np.asarray(row.sampler_logprobs, dtype=np.float32) for row in rows])
            sampler_N = torch.from_numpy(flat).to(self.student.device)

        def loss_of_chunk(part: slice, student_logits: Tensor, teacher_logits: Tensor | None) -> Tensor:
            logprobs = token_logprobs(student_logits, packed.targets_N[part])
            old = logprobs.detach() if old_N is None else old_N[part]
            tokens = Tokens(student_logits, teacher_logits, logprobs, old, advantages_N[part])
            losses = self.method.token_loss(tokens)
            if sampler_N is not None:
                losses = losses * importance_weights(old, sampler_N[part], self.correction_clip)
            loss = (losses * coefficients_N[part]).sum()
            self._add_sums(sums, tokens, packed.targets_N[part], None if sampler_N is None else sampler_N[part], loss)
            return loss

        backward_through_head(self.student, self.student.hidden(packed), teacher_hidden, teacher_network, loss_of_chunk)

    def _teacher_hidden(self, rows: Sequence[Row]) -> Tensor:
        packed = pack(
            [row.plan.teacher_prompt_ids for row in rows], [row.completion_ids for row in rows], self.student.device
        )
        with torch.no_grad():
            return self.teacher.network.hidden(packed)

    def _pack_student(self, micro: Sequence[tuple[int, Row]]) -> Packed:
        return pack([row.prompt_ids for _, row in micro], [row.completion_ids for _, row in micro], self.student.device)

    def _per_token(self, micro: Sequence[tuple[int, Row]], values: Sequence[float]) -> Tensor:
        lengths = [len(row.completion_ids) for _, row in micro]
        return torch.from_numpy(np.repeat(np.asarray(values, dtype=np.float32), lengths)).to(self.student.device)

    @torch.no_grad()
    def _add_sums(
        self, sums: Tensor, tokens: Tokens, targets: Tensor, sampler_logprobs: Tensor | None, loss: Tensor
    ) -> None:
        logprobs_NV = tokens.student_logits.log_softmax(-1)
        entropy = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        parts: list[Any] = [len(targets), loss.detach(), entropy.sum(), 0.0, 0.0, 0.0, 0.0]
        if sampler_logprobs is not None:
            parts[3] = (tokens.old_logprobs - sampler_logprobs).abs().sum()
        if tokens.teacher_logits is not None and self.is_epistemic_V is not None:
            gap = token_logprobs(tokens.teacher_logits, targets) - tokens.logprobs
            is_epistemic = self.is_epistemic_V[targets]
            parts[4] = is_epistemic.sum()
            parts[5] = gap[is_epistemic].sum()
            parts[6] = gap[~is_epistemic].sum()
        sums += torch.stack([torch.as_tensor(part, dtype=torch.float64, device=sums.device) for part in parts])


def _metrics(
    sums: dict[str, float], norms: Sequence[float], *, has_sampler: bool, has_teacher: bool
) -> dict[str, float]:
    """Means over the forwarded tokens (loss, gradient norm: over the updates of the step)."""
    tokens = max(sums["tokens"], 1)
    metrics = {
        "supervised_tokens": int(sums["tokens"]),
        "loss": sums["loss"] / len(norms),
        "grad_norm": sum(norms) / len(norms),
        "entropy_mean": sums["entropy"] / tokens,
    }
    if has_sampler:
        metrics["sampler_gap"] = sums["sampler_gap"] / tokens
    if has_teacher:
        metrics["teacher_gap_epistemic"] = sums["gap_epistemic"] / max(sums["epistemic"], 1)
        metrics["teacher_gap_other"] = sums["gap_other"] / max(sums["tokens"] - sums["epistemic"], 1)
    return metrics
