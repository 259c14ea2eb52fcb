"""Settings of the toy world (docs/toy.md 2 and 4)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from selfdistill.schema.base import Model, Since


class ToyArchitecture(Model):
    """A Qwen3ForCausalLM small enough for a laptop."""

    hidden_size: int = Field(64, gt=0, description="Width.")
    layers: int = Field(3, gt=0, description="Depth.")
    heads: int = Field(4, gt=0, description="Attention heads.")
    kv_heads: int = Field(2, gt=0, description="Key-value heads.")
    head_dim: int = Field(16, gt=0, description="Width of a head.")
    intermediate_size: int = Field(168, gt=0, description="Width of the feed-forward layer.")
    init_std: float = Field(0.05, gt=0, description="Standard deviation of the initial weights.")
    max_positions: int = Field(512, gt=0, description="Longest sequence.")


class TextShares(Model):
    """Shares of the kinds of pretraining text, in every toy world."""

    textbook: float = Field(0.35, ge=0, le=1, description="Share of pages that drill the check of one candidate.")
    with_solution: float = Field(0.25, ge=0, le=1, description="Share of problems with a solution in the prompt.")
    ood: float = Field(0.4, ge=0, le=1, description="Share of problems from families never used in training later.")


class ThinkingOff(Model):
    """Texts whose prompt ends in an empty think block, as Qwen3's does for enable_thinking false (docs/toy.md 10).

    Their answers have no think tags and none of the words of doubt but `check`.
    """

    share: float = Field(0.5, gt=0, lt=1, description="Share of texts with thinking switched off.")
    direct: float = Field(0.6, ge=0, le=1, description="Plain problems answered at once, in place of `direct`.")


class ToyMixture(TextShares):
    """What the pretraining text holds. These are the assumptions of the toy world, as opposed to its findings."""

    direct: float = Field(0.4, ge=0, le=1, description="Plain problems answered at once.")
    direct_correct: float = Field(0.35, ge=0, le=1, description="How often a direct answer is right.")
    give_up: float = Field(0.12, ge=0, le=1, description="Chance of a guess after a failed check.")
    full_solution_direct: float = Field(0.95, ge=0, le=1, description="Concise answers when a full solution is shown.")
    answer_only_direct: float = Field(0.5, ge=0, le=1, description="Concise answers when only the answer is shown.")
    thinking_off: Annotated[ThinkingOff | None, Since(None)] = Field(
        None, description="Makes a model whose thinking can be switched off; null: its chat template refuses that."
    )


class ChainMixture(TextShares):
    """What the pretraining text of chain problems holds (docs/toy.md 9): assumptions, as in `ToyMixture`.

    A rate of doubt is the chance that a decision is doubted: proposed in an epistemic word and then checked.
    """

    doubt: float = Field(0.75, ge=0, le=1, description="Rate of doubt in plain problems.")
    intuition: float = Field(0.35, ge=0, le=1, description="How often an unchecked choice is right by itself.")
    full_solution_doubt: float = Field(0.25, ge=0, le=1, description="Rate of doubt when a full solution is shown.")
    full_solution_direct: float = Field(
        0.7, ge=0, le=1, description="How often only right candidates are named when a full solution is shown."
    )
    answer_only_doubt: float = Field(0.71, ge=0, le=1, description="Rate of doubt when only the answer is shown.")
