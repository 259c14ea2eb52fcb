"""A causal model split at its head, so that logits exist only for completion tokens, a chunk at a time.

    hidden states of the completion positions [N, H]  --head-->  logits [n, V] of a chunk  -->  token losses

`backward_through_head` computes everything that has a vocabulary dimension; another kernel would replace it. Sequences
are padded on the right: under causal attention no real token attends to padding, so no attention mask is needed and
fast attention kernels apply. Attention kernels for sequences of different lengths (`varlen`, flash attention) get them
in one row instead, separated by their positions and without padding.

Where weights are sharded the head is gathered once per micro-batch, and its gradient is summed and sharded once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.generation.base import not_finite
from selfdistill.losses import token_logprobs
from selfdistill.schema.errors import UserError
from selfdistill.training import varlen
from selfdistill.training.compilation import compile_layers, uncompiled
from selfdistill.training.head import Head, is_matrix, matrix_head
from selfdistill.training.sharding import is_sharded, last_hidden_states, local, local_part, whole

#: Elements of one chunk's logits: 64 tokens of the largest vocabularies (37 MiB in float32), 512 tokens on a GPU, where
#: reading and writing the head's whole gradient for every chunk would otherwise take longer than the products.
_CHUNK_ELEMENTS = {"cpu": 64 * 152_064, "cuda": 512 * 152_064}

#: Relative difference of logits that float32 may show.
_LEAST_TOLERANCE = 1e-4

#: Attention of packages that the user installed and a model names: sequences in one row, separated by positions.
FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3")


@dataclass(frozen=True)
class Packed:
    """Sequences as one batch [B, T], and the positions in the flattened batch that predict completion tokens [N].

    `position_ids_BT` is None where every row starts at position 0 and is padded on the right.
    """

    ids_BT: Tensor
    position_ids_BT: Tensor | None
    positions_N: Tensor
    targets_N: Tensor


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device,
    *,
    unpadded: bool = False,
) -> Packed:
    """Concatenate prompts and completions; the last token of each is only a target, not an input."""
    first_N = np.array([len(prompt) - 1 for prompt in prompts])
    counts = np.array([len(completion) for completion in completions])
    lengths = first_N + counts
    shape = (1, int(lengths.sum())) if unpadded else (len(prompts), int(lengths.max()))
    starts = np.cumsum(lengths) - lengths if unpadded else np.arange(len(prompts)) * shape[1]
    ids = np.zeros(shape[0] * shape[1], dtype=np.int64)
    for start, length, prompt, completion in zip(starts, lengths, prompts, completions, strict=True):
        ids[start : start + length] = [*prompt, *completion[:-1]]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    arrays = {
        "ids_BT": ids.reshape(shape),
        "positions_N": np.repeat(starts + first_N, counts) + within,
        "targets_N": np.concatenate([np.asarray(completion, dtype=np.int64) for completion in completions]),
    }
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    position_ids = None
    if unpadded:
        counted = np.arange(len(ids)) - np.repeat(starts, lengths)
        position_ids = torch.from_numpy(counted).to(device)[None]
    return Packed(position_ids_BT=position_ids, **tensors)


class Network:
    """Hidden states and logits of a Hugging Face causal model, at the sampling temperature."""

    def __init__(
        self,
        model: Any,
        *,
        temperature: float = 1.0,
        compute_dtype: torch.dtype = torch.float32,
        compiles: bool = False,
    ) -> None:
        self.model = model
        self.compiles = compiles
        if compiles:
            compile_layers(model)
        self.temperature = temperature
        self.compute_dtype = compute_dtype
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        self.device = next(model.parameters()).device
        self.unpadded = model.config._attn_implementation in (varlen.IMPLEMENTATION, *FLASH_ATTENTION)

    def pack(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Packed:
        """`pack` in the layout that this model's attention supports best."""
        return pack(prompts, completions, self.device, unpadded=self.unpadded)

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states of the completion positions [N, H]."""
        positions = {} if packed.position_ids_BT is None else {"position_ids": packed.position_ids_BT}
        return self.states(packed.ids_BT, **positions).flatten(0, 1).index_select(0, packed.positions_N)

    def states(self, ids_BT: Tensor, **arguments: Any) -> Tensor:
        """Last hidden states of all positions [B, T, H]; further arguments are the library's."""
        with self._casting(), self.plain_layers() if "past_key_values" in arguments else nullcontext():
            return last_hidden_states(self.model, input_ids=ids_BT, **arguments)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model is in evaluation mode (no dropout) within this context."""
        was_training = self.model.training
        if was_training:
            self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def plain_layers(self) -> AbstractContextManager[Any]:
        """The layers are not compiled within this context."""
        return uncompiled() if self.compiles else nullcontext()

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.model)

    @contextmanager
    def head(self, *, trains: bool = False) -> Iterator[Head]:
        """Float32 logits [n, V], divided by the temperature, from hidden states [n, H].

        `trains`: gradients are accumulated in the head's weights by the end of the context. Collective where sharded.
        """
        layer = self.model.get_output_embeddings()
        scale = (self.softcap, self.temperature)
        if not self.is_sharded:
            if is_matrix(layer):
                yield matrix_head(layer.weight, layer.bias, self.compute_dtype, *scale)
            else:
                yield Head(lambda states: self._cast(layer, states), *scale)
            return
        trains = trains and layer.weight.requires_grad
        gathered = [whole(tensor) for tensor in (layer.weight, layer.bias) if tensor is not None]
        leaves = [tensor.detach().requires_grad_(trains) for tensor in gathered]
        yield matrix_head(leaves[0], leaves[1] if len(leaves) > 1 else None, self.compute_dtype, *scale)
        if trains:
            torch.autograd.backward(gathered, [leaf.grad for leaf in leaves])

    def _cast(self, layer: Any, states: Tensor) -> Tensor:
        with self._casting():
            return layer(states)

    def chunk_tokens(self) -> int:
        """Number of tokens whose logits are in memory at once."""
        return max(1, _CHUNK_ELEMENTS[self.device.type] // self.model.config.get_text_config().vocab_size)

    def check_head(self) -> None:
        """Raise UserError if hidden states and head do not give the model's own logits. Collective where sharded.

        Both may come from different kernels, so the difference is measured against the size of the logits, and may be
        a few roundings of the compute type. One forward pass gives both; where weights are sharded each process looks
        at its own part of the vocabulary, so that the head is not gathered.
        """
        kept: list[Tensor] = []
        hook = self.model.base_model.register_forward_hook(lambda *call: kept.append(call[-1].last_hidden_state))
        try:
            with torch.no_grad(), self._casting():
                logits = self.model(input_ids=torch.tensor([[0, 1]], device=self.device), use_cache=False).logits
        finally:
            hook.remove()
        with torch.no_grad(), self._own_head() as (head, part):
            expected = part(logits[0].float() / self.temperature)
            sizes = torch.stack([(head(kept[0][0]) - expected).square().sum(), expected.square().sum()])
        if self.is_sharded:
            torch.distributed.all_reduce(sizes)
        if not sizes[1].isfinite():
            raise not_finite(f"model {type(self.model).__name__}")
        difference = float((sizes[0] / sizes[1]).sqrt())
        if not difference <= max(_LEAST_TOLERANCE, 4 * torch.finfo(self.compute_dtype).eps):
            raise UserError(
                f"model {type(self.model).__name__} does something between its last hidden states and its logits that "
                "training does not support (a scale or a bias outside its head): its logits differ from those of its "
                f"head by {difference:.1%}. Use another model."
            )

    @contextmanager
    def _own_head(self) -> Iterator[tuple[Head, Callable[[Tensor], Tensor]]]:
        """The head of this process's part of the vocabulary, and what cuts that part out of logits [n, V]."""
        if not self.is_sharded:
            with self.head() as head:
                yield head, lambda logits: logits
            return
        layer = self.model.get_output_embeddings()
        bias = None if layer.bias is None else local(layer.bias)
        head = matrix_head(local(layer.weight), bias, self.compute_dtype, self.softcap, self.temperature)
        yield head, lambda logits: local_part(layer.weight, logits.t()).t()

    def _casting(self) -> AbstractContextManager[Any]:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        # The cache would hold a copy of every weight until the forward pass ends, and each weight is used once in it.
        return torch.autocast(self.device.type, dtype=self.compute_dtype, cache_enabled=False)


def backward_through_head(
    network: Network,
    hidden_NH: Tensor,
    loss_of_chunk: Callable[[slice, Tensor], Tensor],
) -> None:
    """Accumulate gradients of the summed chunk losses into the head and everything below it.

    `loss_of_chunk` gets the slice of tokens and the student's logits [n, V], and returns the weighted sum of the token
    losses. The graph of each chunk is freed before the next one is built.
    """
    gradient_NH = torch.empty_like(hidden_NH)
    step = network.chunk_tokens()
    with network.head(trains=True) as head:
        for start in range(0, len(hidden_NH), step):
            part = slice(start, min(start + step, len(hidden_NH)))
            gradient_NH[part] = head.backward(hidden_NH[part], functools.partial(loss_of_chunk, part))
    del head  # Where weights are sharded it holds the whole matrix and its gradient.
    hidden_NH.backward(gradient_NH)


@torch.no_grad()
def completion_logprobs(network: Network, packed: Packed) -> Tensor:
    """Log-probs [N] of the completion tokens."""
    size = network.chunk_tokens()
    parts = zip(network.hidden(packed).split(size), packed.targets_N.split(size), strict=True)
    with network.head() as head:
        return torch.cat([token_logprobs(head(hidden), targets) for hidden, targets in parts])
