"""Inputs of training, and the parts of one step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from selfdistill.generation import sample_seed
from selfdistill.schema.stages import TrainSpec

#: Names of teacher contexts: what the student lacks (metrics compare with this one), and the student's own prompt.
CONTEXT, PLAIN = "context", "plain"


@dataclass(frozen=True)
class SftExample:
    """A prompt with a given completion (its end-of-sequence token included)."""

    row_id: int
    problem_id: str
    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True)
class TrainingFolder:
    """Where training writes: checkpoints, resume states, one line of metrics a step, a trace if configured.

    `last_state`: where the state after the last step is kept; None: it is not.
    """

    checkpoints: Path
    state: Path
    metrics: Path
    profile: Path
    last_state: Path | None = None

    def prepare(self, *, clears: bool) -> None:
        """Make the folders; `clears`: remove what an attempt that was killed left half written."""
        for folder in (self.checkpoints, self.state):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".step-*") if clears else ():
                shutil.rmtree(leftover)


@dataclass(frozen=True)
class TrainingSummary:
    """Result of a training. `resumed_from` is the step of the state that was loaded, or None."""

    steps: int
    checkpoint_steps: list[int]
    resumed_from: int | None
    last_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherPrompt:
    """What the second network reads instead of the student's prompt, under one context.

    `is_stripped`: whether the demonstration lost its thinking; None under contexts that do not strip.
    """

    ids: list[int]
    is_truncated: bool = False
    is_stripped: bool | None = None
    has_leaked_thinking: bool = False


@dataclass(frozen=True, eq=False)
class PromptText:
    """A prompt that is encoded when its ids are asked for (`methods.encoding` asks for those of a whole step).

    `encode` gives its ids, and whether its demonstration was cut to fit. Rollouts that are shown the same text share
    one object, so it is encoded once.
    """

    encode: Callable[[], tuple[list[int], bool]]
    is_stripped: bool | None = None
    has_leaked_thinking: bool = False

    @cached_property
    def encoded(self) -> TeacherPrompt:
        return TeacherPrompt(*self.encode(), self.is_stripped, self.has_leaked_thinking)

    @property
    def ids(self) -> list[int]:
        return self.encoded.ids

    @property
    def is_truncated(self) -> bool:
        return self.encoded.is_truncated


@dataclass(frozen=True)
class RowPlan:
    """What a method decides about one row before any forward pass.

    `is_supervised`: the row is in the loss mask and counts in denominators that leave out masked rows.
    `has_gradient`: its loss may not be zero; other rows are not forwarded (exact, and cheaper).
    `teachers`: its teacher prompts by the name of their context; a row may lack contexts that others have.
    """

    is_supervised: bool = True
    has_gradient: bool = True
    advantage: float = 1.0
    teachers: Mapping[str, TeacherPrompt | PromptText] = field(default_factory=dict)

    @property
    def has_signal(self) -> bool:
        """Whether there is something to learn: a reference that reads the same as the student gives nothing."""
        return self.has_gradient and (self.advantage != 0 or CONTEXT in self.teachers)


@dataclass(frozen=True)
class Row:
    """One sequence of a mini-batch. `sampler_logprobs` is None for given completions."""

    prompt_ids: list[int]
    completion_ids: list[int]
    plan: RowPlan
    sampler_logprobs: list[float] | None = None


@dataclass(frozen=True)
class TokenStatistics:
    """Of the L tokens of a completion: log-prob of the sampled token and entropy, in nats (float64)."""

    logprobs: np.ndarray
    entropy: np.ndarray


@dataclass(frozen=True)
class RowStatistics:
    """One row under the policy before the step's first update, and under its teacher's contexts."""

    plan: RowPlan
    student: TokenStatistics
    teachers: Mapping[str, TokenStatistics]


def draw_indices(spec: TrainSpec, step: int, count: int) -> list[int]:
    """Indices of the prompts or examples, out of `count`, that step `step` (from 1) uses; a pure function.

    with_replacement: independent uniform draws. epochs: one permutation per epoch, steps may straddle two epochs.
    """
    size = spec.prompts_per_step
    if spec.draw == "with_replacement":
        generator = np.random.default_rng(sample_seed(spec.seed, "draw", step))
        return generator.integers(count, size=size).tolist()
    first = (step - 1) * size
    orders: dict[int, np.ndarray] = {}
    indices = []
    for position in range(first, first + size):
        epoch, place = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng(sample_seed(spec.seed, "epoch", epoch)).permutation(count)
        indices.append(int(orders[epoch][place]))
    return indices


def mixed(spec: TrainSpec, step: int, rows: Sequence[Row]) -> list[Row]:
    """The rows of a step in a random order of its own; a pure function."""
    generator = np.random.default_rng(sample_seed(spec.seed, "mini-batches", step))
    return [rows[place] for place in generator.permutation(len(rows))]
