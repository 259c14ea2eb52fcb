"""The sampler protocol: token ids in, token ids out, one seed for each completion.

A completion depends on the weights, its prompt and its seed, and not on the batch it was sampled in (except for float
rounding), so a resumed, re-sharded or re-ordered job samples the same texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from selfdistill.generation.weights import read_weights
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import UserError

#: Batches that a rank takes from a queue, one after the other, where several ranks sample.
_BATCHES_PER_RANK = 4

#: Called by a sampler that holds a copy: names and tensors of the unsharded model without adapters, one at a time.
#: Collective where the model is sharded: every rank must iterate to the end.
Weights = Callable[[], Iterator[tuple[str, Any]]]


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    `token_ids` includes the end-of-sequence token, if any; `logprobs` are those of the sampled tokens under
    the temperature-scaled distribution before top-k and top-p (temperature 0: unscaled).
    """

    token_ids: list[int]
    logprobs: list[float]
    stop_reason: str  # "eos" or "length"


#: Called during sampling with the number of newly finished completions and of their tokens (0 and 0: a heartbeat).
#: An exception that it raises ends the sampling.
OnProgress = Callable[[int, int], None]


def not_finite(where: str) -> UserError:
    """The one error for logits that are NaN or infinite: nothing drawn from them means anything."""
    return UserError(
        f"{where}: the model's logits are not finite (NaN): its weights are damaged, or overflow in this precision. "
        "Check the model (`selfdistill verify`), or compute in float32."
    )


class Sampler(Protocol):
    """Samples completions from a policy whose weights may change between calls.

    `banned`: tokens that are never sampled; log-probs are then those of the distribution that is left.
    """

    banned: Sequence[int] = ()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        on_progress: OnProgress | None = None,
    ) -> list[list[Completion]]:
        """Completions of each prompt, as many as it has seeds; UserError for prompts that do not fit the model."""
        answers = dict(self.stream(prompts, seeds, sampling, on_progress=on_progress))
        return [answers[index] for index in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(index of a prompt, its completions) as prompts finish, in any order; those in `done` are left out.

        The finished prompts are passed, too, so that the torch sampler forms the same batches in a resumed job.
        """
        ...

    @staticmethod
    def portion(count: int, ranks: int) -> int:
        """How many of `count` prompts a rank or shard takes from a queue at a time (`stream_portions`).

        A batch runs until its longest completion ends, so a rank takes a few batches, and all prompts where it is
        alone.
        """
        return max(1, -(-count // (_BATCHES_PER_RANK * ranks))) if ranks > 1 else max(1, count)

    def stream_portions(
        self,
        portions: Iterator[Sequence[int]],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """As `stream`, for the prompts at the places of each portion; a portion is taken when there is room for it."""
        for places in portions:
            finished = {index for index, place in enumerate(places) if place in done}
            if len(finished) == len(places):
                continue
            chosen = [prompts[place] for place in places], [seeds[place] for place in places]
            for index, completions in self.stream(*chosen, sampling, done=finished, on_progress=on_progress):
                yield places[index], completions

    def update_weights(self, weights: Weights) -> None:
        """Use these weights from now on; nothing to do for a sampler that shares its model with training."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Use the weights of another folder, of the same architecture, from now on."""
        self.update_weights(lambda: read_weights(folder))

    def sleep(self) -> None:
        """Give memory back until the next call; nothing to do for a sampler that holds none of its own."""
        ...

    def close(self) -> None:
        """Free memory and processes of the sampler."""
        ...


def sample_seed(spec_seed: int, *parts: int | str) -> int:
    """A 63-bit seed from the spec's seed and what identifies the sample; the same on all platforms and versions."""
    text = "/".join(str(part) for part in (spec_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def check_fits(prompts: Sequence[Sequence[int]], sampling: Sampling, max_positions: int | None) -> None:
    """Raise UserError when a prompt is empty, or a prompt and its longest completion exceed the model's positions."""
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt has no tokens: check the chat template and the question template.")
    longest = max((len(prompt) for prompt in prompts), default=0)
    if max_positions is not None and longest + sampling.max_tokens > max_positions:
        raise UserError(
            f"a prompt of {longest} tokens and sampling.max_tokens = {sampling.max_tokens} exceed the model's "
            f"{max_positions} positions: lower max_tokens or the prompts' max_prompt_tokens."
        )
