"""Log-probs and entropies of a micro-batch's tokens, under the policy and its teacher's contexts, without gradient.

One pass of the policy and one of the teacher per context; logits exist a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from selfdistill.losses import entropy, token_logprobs
from selfdistill.training.data import Row, RowStatistics, TokenStatistics
from selfdistill.training.network import Network, Packed
from selfdistill.training.teacher import ShownLogits


@torch.no_grad()
def row_statistics(
    rows: Sequence[Row],
    student: Network,
    packed: Packed,
    passes: Mapping[str, Callable[[slice], ShownLogits | None]],
) -> list[RowStatistics]:
    """The statistics of each row, with those contexts that the row has."""
    found: dict[str | None, list[Tensor]] = {None: [], **{name: [] for name in passes}}
    hidden, size = student.hidden(packed), student.chunk_tokens()
    with student.head() as head:
        for start in range(0, len(hidden), size):
            part = slice(start, min(start + size, len(hidden)))
            targets = packed.targets_N[part]
            found[None].append(_both(head(hidden[part]), targets))
            for name, logits_of in passes.items():
                shown = logits_of(part)
                if shown is not None:
                    found[name].append(_both(shown.logits, targets[shown.mask(len(targets))]))
    tokens = {name: torch.cat(parts, -1).double().cpu().numpy() for name, parts in found.items() if parts}
    split = {
        name: iter(_by_row(values, [row for row in rows if name is None or name in row.plan.teachers]))
        for name, values in tokens.items()
    }
    return [
        RowStatistics(
            row.plan, next(split[None]), {name: next(split[name]) for name in row.plan.teachers if name in split}
        )
        for row in rows
    ]


def _both(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probs of the targets, and entropies [2, N]."""
    return torch.stack([token_logprobs(logits_NV, targets_N), entropy(logits_NV)])


def _by_row(values: np.ndarray, rows: Sequence[Row]) -> list[TokenStatistics]:
    ends = np.cumsum([len(row.completion_ids) for row in rows])[:-1]
    return [TokenStatistics(*part) for part in np.split(values, ends, axis=-1)]
