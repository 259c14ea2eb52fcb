"""A causal model cut in two at its head, so that logits exist only for completion tokens, a chunk at a time.

    hidden states of the completion positions [N, H]  --head-->  logits [n, V] of a chunk  -->  token losses

`backward_through_head` is the seam for the distillation kernel: it owns everything that has a vocabulary dimension.
Sequences are padded on the right: under causal attention nothing real ever looks at the padding, so no attention
mask is needed and the fast attention kernels apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.losses import token_logprobs
from selfdistill.schema.errors import UserError

#: Elements of one chunk's logits (64 MiB in float32).
_CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Packed:
    """Right-padded sequences [B, T], and where in the flattened batch each completion token is predicted [N]."""

    ids_BT: Tensor
    positions_N: Tensor
    targets_N: Tensor


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """Join prompts and completions; the last token of each is only a target, so it is not an input."""
    starts = np.array([len(prompt) - 1 for prompt in prompts])
    counts = np.array([len(completion) for completion in completions])
    width = int((starts + counts).max())
    ids_BT = np.zeros((len(prompts), width), dtype=np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids_BT[row, : starts[row] + counts[row]] = [*prompt, *completion[:-1]]
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    positions_N = np.repeat(np.arange(len(prompts)) * width + starts, counts) + offsets
    targets_N = np.concatenate([np.asarray(completion, dtype=np.int64) for completion in completions])
    return Packed(*(torch.from_numpy(array).to(device) for array in (ids_BT, positions_N, targets_N)))


class Network:
    """Hidden states and logits of a Hugging Face causal model, at the sampling temperature."""

    def __init__(self, model: Any, *, temperature: float = 1.0, compute_dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.temperature = temperature
        self.compute_dtype = compute_dtype
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        self.device = next(model.parameters()).device

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states of the completion positions [N, H]."""
        with self._casting():
            states = self.model.base_model(input_ids=packed.ids_BT, use_cache=False).last_hidden_state
        return states.flatten(0, 1).index_select(0, packed.positions_N)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Float32 logits [N, V], divided by the temperature."""
        with self._casting():
            logits = self.model.get_output_embeddings()(hidden_NH)
        logits = logits.float()
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits / self.temperature if self.temperature != 1 else logits

    def chunk_tokens(self) -> int:
        """Tokens whose logits are held at once."""
        return max(1, _CHUNK_ELEMENTS // self.model.config.get_text_config().vocab_size)

    def check_head(self) -> None:
        """Raise UserError if hidden states and head do not give the model's own logits."""
        packed = pack([[0, 1]], [[0, 1]], self.device)
        with torch.no_grad(), self._casting():
            expected = self.model(input_ids=packed.ids_BT, use_cache=False).logits[0, 1:].float() / self.temperature
            found = self.logits(self.hidden(packed))
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
            raise UserError(
                f"model {type(self.model).__name__} does something between its last hidden states and its logits that "
                "training does not know (a scale or a bias outside its head). Use another model."
            )

    def _casting(self) -> AbstractContextManager[Any]:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)


def backward_through_head(
    network: Network,
    hidden_NH: Tensor,
    teacher_hidden_NH: Tensor | None,
    teacher: Network | None,
    loss_of_chunk: Callable[[slice, Tensor, Tensor | None], Tensor],
) -> None:
    """Accumulate gradients of the summed chunk losses into the head and everything below it.

    `loss_of_chunk` gets the slice of tokens, the student's logits [n, V] (with gradient) and the teacher's (without),
    and returns the weighted sum of the token losses. Each chunk's graph is freed before the next one is built.
    """
    leaf_NH = hidden_NH.detach().requires_grad_()
    step = network.chunk_tokens()
    for start in range(0, len(leaf_NH), step):
        part = slice(start, min(start + step, len(leaf_NH)))
        teacher_logits = None
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher.logits(teacher_hidden_NH[part])
        loss_of_chunk(part, network.logits(leaf_NH[part]), teacher_logits).backward()
    hidden_NH.backward(leaf_NH.grad)


@torch.no_grad()
def completion_logprobs(network: Network, packed: Packed) -> Tensor:
    """Log-probs [N] of the completion tokens."""
    size = network.chunk_tokens()
    parts = zip(network.hidden(packed).split(size), packed.targets_N.split(size), strict=True)
    return torch.cat([token_logprobs(network.logits(hidden), targets) for hidden, targets in parts])
