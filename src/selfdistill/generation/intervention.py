"""What is forced on completions and what is forbidden in them, as token ids.

A prefix becomes part of the prompt for the sampler and part of the completion for everything after it, so that both
engines treat it alike. Its tokens were not sampled: their log-prob is 0, the logarithm of 1. Words are banned by a mask
on the logits, so log-probs are those of the distribution that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.epistemic import tokens_of
from selfdistill.generation.base import Completion
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import UserError
from selfdistill.schema.shared import InterventionFields


@dataclass(frozen=True)
class Intervention:
    """Tokens that every completion begins with, and tokens that are never sampled."""

    prefix: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()

    @classmethod
    def of(cls, fields: InterventionFields, tokenizer: Any) -> Intervention:
        """UserError for a text that the tokenizer cannot write, and for a word that no single token is."""
        if not (fields.prefix or fields.banned_words):
            return cls()
        prefix = tokenizer.encode(fields.prefix, add_special_tokens=False) if fields.prefix else []
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in prefix:
            raise UserError(f"prefix: the model's tokenizer has no token for a part of {fields.prefix!r}.")
        found = tokens_of(tokenizer.get_vocab(), fields.banned_words)
        missing = [word for word, tokens in found.items() if not tokens]
        if missing:
            raise UserError(
                f"banned_words: {missing[0]!r} is not a single token of this model, so a mask cannot ban it; "
                "leave it out."
            )
        return cls(tuple(prefix), tuple(sorted({token for tokens in found.values() for token in tokens})))

    def sampling(self, sampling: Sampling) -> Sampling:
        """What is left to be sampled; UserError where the prefix leaves nothing."""
        left = sampling.max_tokens - len(self.prefix)
        if left <= 0:
            raise UserError(
                f"prefix: its {len(self.prefix)} tokens leave nothing of max_tokens = {sampling.max_tokens}: raise it."
            )
        return sampling.model_copy(update={"max_tokens": left})

    def prompt(self, prompt_ids: Sequence[int]) -> list[int]:
        return [*prompt_ids, *self.prefix]

    def completion(self, sampled: Completion) -> Completion:
        """The whole completion. RuntimeError if a banned token was sampled."""
        if not set(self.banned).isdisjoint(sampled.token_ids):
            raise RuntimeError("a banned token was sampled: the engine did not apply the mask")
        return Completion(
            [*self.prefix, *sampled.token_ids], [0.0] * len(self.prefix) + sampled.logprobs, sampled.stop_reason
        )
