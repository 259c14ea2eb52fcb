"""How token losses become one number: a fixed coefficient for the tokens of each row.

    loss = sum over rows r, tokens t of  coefficient[r] x token_loss[r, t]

The coefficients need only lengths and the mask of the *whole* mini-batch, so the value of the loss cannot depend on
micro-batches, padding or the number of processes. With R rows, S of them supervised, L[r] tokens in row r:

    sequence_mean            1 / (R x L[r])    masked rows count in the denominator: what the paper's code computes
                                               although it is configured as "token-mean" (docs/method.md 7.1)
    token_mean               1 / (sum of L over the supervised rows)
    unmasked_sequence_mean   1 / (S x L[r])
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "unmasked_sequence_mean"]


def token_coefficients(lengths_R: Tensor, is_supervised_R: Tensor, mode: Aggregation) -> Tensor:
    """Coefficient [R] (float64) of every token of a row; 0 for rows that are not supervised or empty."""
    lengths_R = lengths_R.to(torch.float64)
    mask_R = (is_supervised_R & (lengths_R > 0)).to(torch.float64)
    per_sequence_R = mask_R / lengths_R.clamp(min=1)
    if mode == "sequence_mean":
        return per_sequence_R / max(len(lengths_R), 1)
    if mode == "unmasked_sequence_mean":
        return per_sequence_R / mask_R.sum().clamp(min=1)
    return mask_R / (lengths_R * mask_R).sum().clamp(min=1)
