"""A plain torch sampler: shared prefill, KV cache, and no computation for rows that have ended.

Each distinct prompt is prefilled once and its cache is expanded to its samples. Rows that end are dropped from the
batch (compaction), which is what makes it 2 to 3 times as fast as a batch that runs until its longest row ends.
Each row draws from its own random stream by inverting the cumulative distribution, so that its text depends on its
seed and not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.generation.base import Completion, OnProgress, Sampler, Weights, check_fits, not_finite
from selfdistill.generation.decoders import make_decoder
from selfdistill.generation.randomness import uniforms
from selfdistill.schema.common import Sampling

#: Ended rows are dropped once this fraction of the batch, or less, is still running.
_COMPACT_BELOW = 0.9
#: Random numbers generated at a time.
_UNIFORM_BLOCK = 64
#: Tokens between two heartbeats while no row ends.
_HEARTBEAT_TOKENS = 64
#: Probabilities held in float64 at a time, for large vocabularies.
_DRAW_ELEMENTS = 2**25


@dataclass(frozen=True)
class _Batch:
    """Distinct prompts that run together, and for each sample: its prompt here, (prompt, sample) outside, its seed."""

    prompts: list[Sequence[int]]
    prompt_of_row: list[int]
    place_of_row: list[tuple[int, int]]
    seed_of_row: list[int]


class TorchSampler(Sampler):
    """Samples from a Hugging Face causal model that lives in this process.

    `shares_model`: it is the model object that is being trained; otherwise a copy that gets every update.
    """

    def __init__(
        self,
        model: Any,
        eos_token_ids: Sequence[int],
        *,
        pad_token_id: int = 0,
        max_batch_tokens: int = 262144,
        shares_model: bool = True,
    ) -> None:
        self.model = model
        self.shares_model = shares_model
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.pad_token_id = pad_token_id
        self.max_batch_tokens = max_batch_tokens
        self.compacts = True

    def update_weights(self, weights: Weights) -> None:
        """See `generation.base.Sampler`."""
        if self.shares_model:
            return
        own = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in weights():
                own[name].copy_(tensor)

    def close(self) -> None:
        """Nothing to free: the model belongs to the caller."""

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `generation.base.Sampler`. Batches are planned for all prompts; those that are done are skipped."""
        check_fits(prompts, sampling, getattr(self.model.config, "max_position_embeddings", None))
        missing = {index: len(row_seeds) for index, row_seeds in enumerate(seeds) if index not in done}
        yield from ((index, []) for index, count in missing.items() if not count)
        answers: dict[int, dict[int, Completion]] = {index: {} for index, count in missing.items() if count}
        for batch in _plan_batches(prompts, seeds, sampling.max_tokens, self.max_batch_tokens):
            if not any(index in answers for index, _ in batch.place_of_row):
                continue
            with _evaluating(self.model), torch.no_grad():
                completions = list(self._run(batch, sampling, on_progress))
            for (index, sample), completion in zip(batch.place_of_row, completions, strict=True):
                if index in answers:
                    answers[index][sample] = completion
            for index in [index for index, group in answers.items() if len(group) == missing[index]]:
                group = answers.pop(index)
                yield index, [group[sample] for sample in range(missing[index])]

    def _run(self, batch: _Batch, sampling: Sampling, on_progress: OnProgress | None) -> Iterator[Completion]:
        decoding = _Decoding(self.model, batch, sampling, self.pad_token_id, self.banned)
        eos = torch.tensor(self.eos_token_ids, device=decoding.device)
        for position in range(sampling.max_tokens):
            finished = decoding.draw(position, eos)
            running = len(decoding.rows) - decoding.ended_count
            is_last = running == 0 or position + 1 == sampling.max_tokens
            finished += running if is_last else 0
            if on_progress is not None and (finished or position % _HEARTBEAT_TOKENS == 0):
                on_progress(finished, finished * (position + 1))
            if is_last:
                break
            if self.compacts and running <= _COMPACT_BELOW * len(decoding.rows):
                decoding.compact()
            decoding.advance()
        return decoding.completions()


class _Decoding:
    """The running batch. B rows at the start; A of them still in the batch; P distinct prompts; T prompt tokens."""

    def __init__(
        self, model: Any, batch: _Batch, sampling: Sampling, pad_token_id: int, banned: Sequence[int] = ()
    ) -> None:
        self.sampling = sampling
        self.banned = list(banned)
        self.decoder = make_decoder(model)
        self.device = next(model.parameters()).device
        count = len(batch.prompt_of_row)
        self.tokens_BL = torch.zeros(count, sampling.max_tokens, dtype=torch.long, device=self.device)
        self.logprobs_BL = torch.zeros(count, sampling.max_tokens, device=self.device)
        self.lengths_B = torch.full((count,), sampling.max_tokens, device=self.device)
        self.is_ended_B = torch.zeros(count, dtype=torch.bool, device=self.device)
        self.rows = torch.arange(count, device=self.device)
        self.ended_count = 0
        self.seeds_A = np.array(batch.seed_of_row, dtype=np.uint64)
        self.uniforms_AT: Tensor | None = None
        self._prefill(batch, pad_token_id)

    def _prefill(self, batch: _Batch, pad_token_id: int) -> None:
        lengths_P = np.array([len(prompt) for prompt in batch.prompts])
        longest = int(lengths_P.max())
        ids_PT = np.full((len(batch.prompts), longest), pad_token_id)
        for row, prompt in enumerate(batch.prompts):
            ids_PT[row, longest - len(prompt) :] = prompt
        expand_A = torch.tensor(batch.prompt_of_row, device=self.device)
        padding_P = torch.from_numpy(longest - lengths_P).to(self.device)
        mask_PT = torch.arange(longest, device=self.device)[None, :] >= padding_P[:, None]
        is_padded = bool((lengths_P != longest).any())
        logits_PV = self.decoder.prefill(
            torch.from_numpy(ids_PT).to(self.device),
            mask_PT if is_padded else None,
            (mask_PT.cumsum(-1) - 1).clamp(min=0),
        )
        self.decoder.select(expand_A)
        self.logits_AV = logits_PV[expand_A]
        self.positions_A = torch.from_numpy(lengths_P).to(self.device)[expand_A]
        self.seen = longest
        self.mask_AT: Tensor | None = None
        if is_padded:
            self.mask_AT = torch.ones(
                len(expand_A), longest + self.sampling.max_tokens, dtype=torch.bool, device=self.device
            )
            self.mask_AT[:, :longest] = mask_PT[expand_A]

    def draw(self, position: int, eos: Tensor) -> int:
        """Sample the next token of every row; return how many rows ended with it."""
        block = position % _UNIFORM_BLOCK
        if block == 0 or self.uniforms_AT is None:
            start = position - block
            numbers = uniforms(self.seeds_A, start, min(_UNIFORM_BLOCK, self.sampling.max_tokens - start))
            self.uniforms_AT = torch.from_numpy(numbers).to(self.device)
        if self.banned:
            self.logits_AV[:, self.banned] = -torch.inf
        self.next_A, logprobs_A = draw_tokens(self.logits_AV, self.uniforms_AT[:, block], self.sampling)
        self.tokens_BL[self.rows, position] = self.next_A
        self.logprobs_BL[self.rows, position] = logprobs_A
        ends_A = torch.isin(self.next_A, eos) & ~self.is_ended_B[self.rows]
        is_broken_A = logprobs_A.isnan() & ~self.is_ended_B[self.rows]
        finished, broken = torch.stack([ends_A.sum(), is_broken_A.sum()]).tolist()
        if broken:
            raise not_finite(f"token {position + 1} of {broken} completions")
        if finished:
            ended_rows = self.rows[ends_A]
            self.is_ended_B[ended_rows] = True
            self.lengths_B[ended_rows] = position + 1
            self.ended_count += finished
        return finished

    def compact(self) -> None:
        """Drop the rows that have ended."""
        keep = (~self.is_ended_B[self.rows]).nonzero().squeeze(-1)
        self.decoder.select(keep)
        self.rows, self.next_A, self.positions_A = self.rows[keep], self.next_A[keep], self.positions_A[keep]
        self.seeds_A = self.seeds_A[keep.cpu().numpy()]
        self.uniforms_AT = self.uniforms_AT[keep]
        if self.mask_AT is not None:
            self.mask_AT = self.mask_AT[keep]
        self.ended_count = 0

    def advance(self) -> None:
        """One forward pass with the tokens just drawn."""
        self.seen += 1
        mask = None if self.mask_AT is None else self.mask_AT[:, : self.seen]
        self.logits_AV = self.decoder.step(self.next_A, mask, self.positions_A)
        self.positions_A = self.positions_A + 1

    def completions(self) -> Iterator[Completion]:
        lengths = self.lengths_B.tolist()
        is_ended = self.is_ended_B.tolist()
        tokens, logprobs = self.tokens_BL.tolist(), self.logprobs_BL.tolist()
        for row, length in enumerate(lengths):
            reason = "eos" if is_ended[row] else "length"
            yield Completion(tokens[row][:length], logprobs[row][:length], reason)


def draw_tokens(logits_AV: Tensor, uniforms_A: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens [A], and their log-probs [A] before truncation. Temperature 0 takes the most likely token."""
    if sampling.temperature not in (0, 1):
        logits_AV = logits_AV / sampling.temperature
    logprobs_AV = logits_AV.log_softmax(-1)
    if sampling.temperature == 0:
        tokens_A = logprobs_AV.argmax(-1)
    else:
        rows = max(1, _DRAW_ELEMENTS // logits_AV.shape[-1])
        parts = zip(logprobs_AV.split(rows), uniforms_A.split(rows), strict=True)
        tokens_A = torch.cat([_invert(part, numbers, sampling) for part, numbers in parts])
    return tokens_A, logprobs_AV.gather(-1, tokens_A[:, None]).squeeze(-1)


def _invert(logprobs: Tensor, uniforms_A: Tensor, sampling: Sampling) -> Tensor:
    """The first token whose cumulative probability exceeds the uniform number."""
    cumulative = _truncate(logprobs, sampling).exp().cumsum(-1, dtype=torch.float64)
    targets = uniforms_A[:, None] * cumulative[:, -1:]
    # NaN sorts last, and so does a product that is rounded up to the whole sum: one more than the last token.
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1).clamp(max=logprobs.shape[-1] - 1)


def _truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Top-k, then the smallest set whose share of those reaches top-p; the rest gets -inf."""
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k, dim=-1).values[:, -1:], -torch.inf)
    if sampling.top_p < 1:
        sorted_probs, order = logits.softmax(-1).sort(-1, descending=True)
        is_dropped = sorted_probs.cumsum(-1) - sorted_probs >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(is_dropped).scatter(-1, order, is_dropped), -torch.inf)
    return logits


def _plan_batches(
    prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], max_tokens: int, budget: int
) -> Iterator[_Batch]:
    """Sort distinct prompts by length and fill batches of at most `budget` positions (always at least one row)."""
    samples: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for index, prompt in enumerate(prompts):
        samples.setdefault(tuple(prompt), []).extend((index, sample) for sample in range(len(seeds[index])))
    batch = _Batch([], [], [], [])
    for prompt in sorted(samples, key=len):
        for index, sample in samples[prompt]:
            if batch.prompt_of_row and (len(batch.prompt_of_row) + 1) * (len(prompt) + max_tokens) > budget:
                yield batch
                batch = _Batch([], [], [], [])
            if not batch.prompts or batch.prompts[-1] != prompt:
                batch.prompts.append(prompt)
            batch.prompt_of_row.append(len(batch.prompts) - 1)
            batch.place_of_row.append((index, sample))
            batch.seed_of_row.append(seeds[index][sample])
    if batch.prompt_of_row:
        yield batch


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        # Layers that training compiled are plain here: every token, row and layer would be compiled for itself.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(was_training)
