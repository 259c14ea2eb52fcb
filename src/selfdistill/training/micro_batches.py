"""The micro-batches of an update: the rows of each rank, those that are forwarded together, and who reads a prompt.

    rows with a gradient  -->  rows of each rank  -->  micro-batches of each rank  -->  the same number of passes

Rows whose teacher reads one long prompt stay together where that pays, since it is read once for them (`prefix.py`).
What pays is counted in tokens, with padding; `plans` has the two ways to deal rows.
With sharded weights every rank must do the same passes: ranks with fewer micro-batches add passes over a token of
weight 0, and where one rank reads a prompt, the others do a pass over one token beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from selfdistill.training.data import Row
from selfdistill.training.prefix import LEAST_TOKENS, Reading, is_long_and_same

#: Overhead of a micro-batch (forward and backward pass of a small model), as a number of padded tokens.
_MICRO_BATCH_COST = 256
#: What a token costs the student, where it costs the teacher 1: forward, once more for its activations, twice backward.
_STUDENT_COST = 4


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are forwarded together, and their places in the mini-batch. `counts` False: weight 0.

    `can_share`: a long prompt is read once for its rows; with `keeps_prompts` its neighbours have the same teacher
    prompts, which are read once for all of them. `read_by_a_rank`: contexts of which some rank reads a prompt before
    its rows; given only where all ranks must do the same passes.
    """

    places: list[int]
    rows: list[Row]
    counts: bool = True
    can_share: bool = False
    keeps_prompts: bool = False
    read_by_a_rank: frozenset[str] = frozenset()

    def per_token(self, values: Sequence[float], device: torch.device) -> Tensor:
        """One value of each row, repeated for its tokens [N]."""
        lengths = [len(row.completion_ids) for row in self.rows]
        return torch.from_numpy(np.repeat(np.asarray(values, dtype=np.float32), lengths)).to(device)

    def gather(self, values: Mapping[int, Tensor] | None) -> Tensor | None:
        """Values of the tokens [N], from those of the rows by their places; None where there are none, or weight 0."""
        return torch.cat([values[place] for place in self.places]) if values and self.counts else None

    def rows_and_positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Place of each token's row in the mini-batch, and of the token in its completion, from 0 [N], [N]."""
        lengths = [len(row.completion_ids) for row in self.rows]
        rows_N = torch.from_numpy(np.repeat(self.places, lengths))
        return rows_N.to(device), torch.cat([torch.arange(length) for length in lengths]).to(device)

    def sampler_logprobs(self, device: torch.device) -> Tensor | None:
        if self.rows[0].sampler_logprobs is None:
            return None
        flat = np.concatenate([np.asarray(row.sampler_logprobs, dtype=np.float32) for row in self.rows])
        return torch.from_numpy(flat).to(device)

    @property
    def contexts(self) -> list[str]:
        """Names of the contexts that some of its rows have."""
        return list(dict.fromkeys(name for row in self.rows for name in row.plan.teachers))

    def kept_prompts(self) -> list[list[int]]:
        """Prompts that a neighbour may have read, or may read after it."""
        return [prompt.ids for prompt in self.rows[0].plan.teachers.values()] if self.keeps_prompts else []

    def reading(self, name: str) -> Reading:
        """How the teacher reads the prompts of a context."""
        return Reading(
            is_shared=self.shared_prompt(name) is not None,
            is_kept=self.keeps_prompts,
            is_common=name in self.read_by_a_rank,
        )

    def shared_prompt(self, name: str) -> list[int] | None:
        """The prompt of a context that is read once for all rows that have this context; None if there is none."""
        prompts = [row.plan.teachers[name].ids for row in self.rows if name in row.plan.teachers]
        is_shared = self.can_share and is_long_and_same(prompts, least=1 if self.keeps_prompts else 2)
        return prompts[0] if is_shared else None


@dataclass(frozen=True)
class MicroBatchPlanner:
    """Plans the micro-batches of the rank `rank` of `ranks`.

    `in_step`: all ranks must do the same passes. `can_share`: a long prompt of the teacher is read once for its rows.
    `unpadded`: sequences of a micro-batch are one after another.
    """

    rank: int
    ranks: int
    in_step: bool
    can_share: bool
    unpadded: bool
    budget: int

    def plan(self, rows: Sequence[Row]) -> list[MicroBatch]:
        """This rank's micro-batches of the rows of an update that have a gradient."""
        by_length = sorted(active_places(rows), key=lambda place: _student_tokens(rows[place]))
        plans = self.plans(rows, by_length)
        if not self.in_step:
            return plans[self.rank]
        most = max(map(len, plans))
        if not most:
            return []
        plans = [[*plan, *[_idle(rows, by_length)] * (most - len(plan))] for plan in plans]
        reads = zip(*map(_read_anew, plans), strict=True)
        return [
            replace(micro, read_by_a_rank=frozenset().union(*of_ranks))
            for micro, of_ranks in zip(plans[self.rank], reads, strict=True)
        ]

    def plans(self, rows: Sequence[Row], by_length: Sequence[int]) -> list[list[MicroBatch]]:
        """The micro-batches of each rank, the same on every rank, from the places of rows by length.

        Every `ranks`-th row; or the rows of each long prompt together, if the update is faster then. Only then do ranks
        in step share prompts: otherwise rows of like lengths, side by side, leave nobody waiting.
        """
        usual = replace(self, can_share=self.can_share and not (self.in_step and self.ranks > 1))
        spread = [usual._plan(rows, by_length[rank :: self.ranks]) for rank in range(self.ranks)]
        sets = self._sets(rows, by_length)
        if self.ranks == 1 or not any(prefix for _, prefix in sets):
            return spread
        units = [unit for places, prefix in sets for unit in ([places] if prefix else [[place] for place in places])]
        together = [self._plan(rows, places) for places in self._deal(rows, units)]
        return together if self._time(together) < self._time(spread) else spread

    def _deal(self, rows: Sequence[Row], units: Sequence[list[int]]) -> list[list[int]]:
        """The places of each rank: the dearest unit first, to the rank with the least so far."""
        dealt: list[list[int]] = [[] for _ in range(self.ranks)]
        costs = [0] * self.ranks
        priced = [(sum(self._costs(self._plan(rows, unit))), unit) for unit in units]
        for cost, unit in sorted(priced, reverse=True):
            rank = costs.index(min(costs))
            dealt[rank] += unit
            costs[rank] += cost
        return dealt

    def _time(self, plans: Sequence[Sequence[MicroBatch]]) -> int:
        """Cost of the slowest rank; ranks in step wait for the dearest of the micro-batches that are side by side."""
        costs = [self._costs(plan) for plan in plans]
        return sum(map(max, zip_longest(*costs, fillvalue=0))) if self.in_step else max(map(sum, costs))

    def _costs(self, micros: Sequence[MicroBatch]) -> list[int]:
        """Tokens that student and teacher read for each micro-batch of a rank; those of the student count more."""
        costs = []
        for micro, anew in zip(micros, _read_anew(micros), strict=True):
            cost = _STUDENT_COST * _size(map(_student_tokens, micro.rows), self.unpadded)
            for name in micro.contexts:
                shown = [row for row in micro.rows if name in row.plan.teachers]
                if prompt := micro.shared_prompt(name):
                    cost += _size((len(row.completion_ids) for row in shown), False) + len(prompt) * (name in anew)
                else:
                    lengths = (len(row.plan.teachers[name].ids) + len(row.completion_ids) for row in shown)
                    cost += _size(lengths, self.unpadded)
            costs.append(cost)
        return costs

    def _plan(self, rows: Sequence[Row], places: Sequence[int]) -> list[MicroBatch]:
        planned = []
        for together, prefix in self._sets(rows, places):
            micros = self._plan_lengths([rows[place] for place in together], prefix)
            planned += [
                MicroBatch(
                    [together[i] for i in micro],
                    [rows[together[i]] for i in micro],
                    can_share=self.can_share,
                    keeps_prompts=prefix > 0 and len(micros) > 1,
                )
                for micro in micros
            ]
        return planned

    def _sets(self, rows: Sequence[Row], places: Sequence[int]) -> list[tuple[list[int], int]]:
        """Places that are planned together: those whose teacher reads one long prompt (of this length); all others."""
        by_prompts: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place in places:
            prompts = tuple(tuple(prompt.ids) for prompt in rows[place].plan.teachers.values())
            is_long = self.can_share and max(map(len, prompts), default=0) >= LEAST_TOKENS
            by_prompts.setdefault(prompts if is_long else (), []).append(place)
        shared = [(group, max(map(len, key))) for key, group in by_prompts.items() if key and len(group) > 1]
        in_sets = {place for group, _ in shared for place in group}
        others = [place for place in places if place not in in_sets]
        return [*shared, (others, 0)] if others else shared

    def _plan_lengths(self, rows: Sequence[Row], prefix: int) -> list[list[int]]:
        """Micro-batches of rows whose teacher's prompt of `prefix` tokens (0 for none) is held beside each of them."""
        student = [_student_tokens(row) for row in rows]
        teacher = [len(row.completion_ids) if prefix else _longest_teacher(row) for row in rows]
        budget = max(1, self.budget - prefix)
        # Completions after a shared prompt are padded.
        return plan_micro_batches(student, teacher, budget, unpadded=self.unpadded and not prefix)


def plan_micro_batches(
    student_lengths: Sequence[int], teacher_lengths: Sequence[int], budget: int, *, unpadded: bool = False
) -> list[list[int]]:
    """Split rows into micro-batches: sorted by length, at most `budget` tokens (padded ones too), least padding.

    Lengths are whole sequences (teacher 0: none). Dynamic programming over the sorted rows minimises tokens plus a
    constant for each micro-batch. A row longer than the budget gets a micro-batch of its own.
    """
    lengths = np.stack([np.asarray(student_lengths), np.asarray(teacher_lengths)], axis=1)
    order = np.lexsort((lengths[:, 1], lengths[:, 0]))
    ordered = lengths[order]
    count = len(order)
    best = np.zeros(count + 1)
    start_of = np.zeros(count + 1, dtype=int)
    for end in range(1, count + 1):
        upwards = ordered[:end][::-1]
        if unpadded:
            size = np.cumsum(upwards, axis=0)[::-1]
        else:
            size = np.maximum.accumulate(upwards, axis=0)[::-1] * np.arange(end, 0, -1)[:, None]
        cost = best[:end] + size.sum(axis=1) + _MICRO_BATCH_COST
        fits = (size <= budget).all(axis=1)
        fits[-1] = True
        start_of[end] = int(np.where(fits, cost, np.inf).argmin())
        best[end] = cost[start_of[end]]
    batches = []
    end = count
    while end > 0:
        batches.append(order[start_of[end] : end].tolist())
        end = int(start_of[end])
    return batches[::-1]


def active_places(rows: Sequence[Row]) -> list[int]:
    """Places of the rows that have a gradient."""
    return [place for place, row in enumerate(rows) if row.plan.has_gradient and row.completion_ids]


def _idle(rows: Sequence[Row], active: Sequence[int]) -> MicroBatch:
    """A pass without weight over the first token of the shortest row, for a rank that has no more rows."""
    place = min(active, key=lambda place: len(rows[place].prompt_ids))
    row = rows[place]
    logprobs = None if row.sampler_logprobs is None else row.sampler_logprobs[:1]
    plan = replace(row.plan, teachers={})
    short = replace(row, completion_ids=row.completion_ids[:1], sampler_logprobs=logprobs, plan=plan)
    return MicroBatch([place], [short], counts=False)


def _read_anew(micros: Sequence[MicroBatch]) -> list[set[str]]:
    """For each micro-batch of a rank, the contexts whose shared prompt the one before it did not leave behind."""
    found, before = [], {}
    for micro in micros:
        shared = {name: prompt for name in micro.contexts if (prompt := micro.shared_prompt(name)) is not None}
        kept = before if micro.keeps_prompts else {}
        found.append({name for name, prompt in shared.items() if kept.get(name) != prompt})
        before = shared if micro.keeps_prompts else {}
    return found


def _size(lengths: Iterable[int], unpadded: bool) -> int:
    """Tokens of sequences that are forwarded together, with padding unless they are one after another."""
    found = list(lengths)
    return sum(found) if unpadded else max(found) * len(found)


def _student_tokens(row: Row) -> int:
    return len(row.prompt_ids) + len(row.completion_ids)


def _longest_teacher(row: Row) -> int:
    """Tokens of the row's longest teacher sequence; 0 without a teacher."""
    return max((len(prompt.ids) + len(row.completion_ids) for prompt in row.plan.teachers.values()), default=0)
