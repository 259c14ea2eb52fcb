"""Sums over the tokens of a step, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selfdistill.losses import entropy, kl_penalty, token_logprobs
from selfdistill.training.data import Row, RowStatistics
from selfdistill.training.methods.base import Tokens

_NAMES = (
    "tokens",
    "shown",
    "loss",
    "entropy",
    "sampler_gap",
    "epistemic",
    "gap_epistemic",
    "gap_other",
    "reference_kl",
)


class TokenSums:
    """Running sums as one vector on the device, so that ranks can add them with one operation.

    `context` names the teacher's context that the student is compared with.
    """

    def __init__(self, device: torch.device, is_epistemic_V: Tensor | None, context: str) -> None:
        self.context = context
        self.values = torch.zeros(len(_NAMES), dtype=torch.float64, device=device)
        self.is_epistemic_V = is_epistemic_V

    @torch.no_grad()
    def add(self, tokens: Tokens, sampler_logprobs: Tensor | None, loss: Tensor) -> None:
        """Add a chunk of tokens. The gap to the teacher is log T - log S of the sampled token."""
        new = {
            "tokens": torch.full_like(loss, len(tokens.targets)),
            "loss": loss,
            "entropy": entropy(tokens.student_logits).sum(),
        }
        if sampler_logprobs is not None:
            new["sampler_gap"] = (tokens.old_logprobs - sampler_logprobs).abs().sum()
        if self.context in tokens.teachers and self.is_epistemic_V is not None:
            shown = tokens.teachers[self.context]
            mask = slice(None) if shown.is_shown is None else shown.is_shown
            targets, logprobs = tokens.targets[mask], tokens.logprobs[mask]
            new |= self._gap(targets, logprobs, token_logprobs(shown.logits, targets))
        self._add(new)

    @torch.no_grad()
    def add_teacher(self, rows: Sequence[Row], statistics: Sequence[RowStatistics]) -> None:
        """Add the gap to a teacher that is not forwarded in the updates, from the statistics of its rows."""
        for row, found in zip(rows, statistics, strict=True):
            if self.context in found.teachers and self.is_epistemic_V is not None:
                targets, student, teacher = (
                    torch.as_tensor(values, device=self.values.device)
                    for values in (row.completion_ids, found.student.logprobs, found.teachers[self.context].logprobs)
                )
                self._add(self._gap(targets, student, teacher))

    def _gap(self, targets: Tensor, logprobs: Tensor, teacher_logprobs: Tensor) -> dict[str, Tensor]:
        gap = teacher_logprobs - logprobs
        is_epistemic = self.is_epistemic_V[targets].to(gap.dtype)
        return {
            "shown": torch.full_like(gap[:1].sum(), len(targets)),
            "epistemic": is_epistemic.sum(),
            "gap_epistemic": (gap * is_epistemic).sum(),
            "gap_other": (gap * (1 - is_epistemic)).sum(),
            "reference_kl": kl_penalty(logprobs, teacher_logprobs).sum(),
        }

    def _add(self, new: Mapping[str, Tensor]) -> None:
        names = [name for name in _NAMES if name in new]
        places = torch.tensor([_NAMES.index(name) for name in names], device=self.values.device)
        self.values.index_add_(0, places, torch.stack([new[name].detach() for name in names]).to(self.values))

    def metrics(
        self, norms: Sequence[float], *, has_sampler: bool, has_teacher: bool, has_reference: bool
    ) -> dict[str, float]:
        """Means over the forwarded tokens (loss, gradient norm: over the updates of the step)."""
        sums = dict(zip(_NAMES, self.values.tolist(), strict=True))
        tokens = max(sums["tokens"], 1)
        metrics = {
            "supervised_tokens": int(sums["tokens"]),
            "loss": sums["loss"] / max(len(norms), 1),
            "grad_norm": sum(norms) / max(len(norms), 1),
            "entropy_mean": sums["entropy"] / tokens,
        }
        if has_sampler:
            metrics["sampler_gap"] = sums["sampler_gap"] / tokens
        if has_teacher:
            metrics["teacher_gap_epistemic"] = sums["gap_epistemic"] / max(sums["epistemic"], 1)
            metrics["teacher_gap_other"] = sums["gap_other"] / max(sums["shown"] - sums["epistemic"], 1)
        if has_reference:
            metrics["reference_kl"] = sums["reference_kl"] / max(sums["shown"], 1)
        return metrics
