"""Sampling of a training step: its prompts, their seeds, and the groups as ranks sample, grade and keep them.

Ranks take places of the step from one queue, a few at a time, so that none waits long for the slowest. Groups that are
finished are graded by a thread and kept on disk while the others are sampled: a run that is stopped or killed does not
sample them again. The phase `grading` is what is left of it when sampling has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from selfdistill.generation.base import Completion, OnProgress, Sampler, sample_seed
from selfdistill.rollouts import GradeFunction, Group, Prompt, grade_groups
from selfdistill.schema.stages import TrainSpec
from selfdistill.training.distributed import World

#: Seconds between two writes of finished groups. What is sampled in less is not worth a file.
_KEEP_SECONDS = 10.0


class KeptGroups(Protocol):
    """Graded groups of steps that are not in a resume state yet, by their place in the step."""

    def read(self, step: int, prompts: Sequence[Prompt], first: int) -> dict[int, Group]:
        """The groups of a step that any rank has kept, among those of `prompts`, which begin at place `first`."""
        ...

    def add(self, step: int, groups: Mapping[int, Group]) -> None:
        """Keep groups that this rank has sampled."""
        ...

    def drop(self, step: int) -> None:
        """Forget the groups up to a step whose updates are saved."""
        ...


class Stopped(Exception):
    """A stop was requested while this rank sampled; `on_progress` of a sampler raises it."""


def step_seeds(
    spec: TrainSpec, prompts: Sequence[Prompt], step: int, first: int = 0, *, samples: int
) -> list[list[int]]:
    """Seeds [place][sample] of prompts of the step, which begin at place `first`.

    They depend on (spec seed, step, place in the step, row, sample) and not on the rank that samples: a problem drawn
    twice gets different noise, and the result does not depend on how places are spread over ranks.
    """
    return [
        [sample_seed(spec.seed, "rollout", step, place, prompt.row_id, sample) for sample in range(samples)]
        for place, prompt in enumerate(prompts, first)
    ]


def portions(sampler: Sampler, count: int, world: World) -> Iterator[list[int]]:
    """Places of `count` prompts, as this rank takes them from a queue.

    The portions are the same on every rank and in a resumed run; only who takes them is not.
    """
    size = sampler.portion(count, world.size)
    return world.pull([list(range(start, min(start + size, count))) for start in range(0, count, size)])


@dataclass
class StepSampling:
    """Samples and grades groups of one step, in places from `first` on. `phase(name)` measures a part of it.

    `samples`: completions of each prompt.
    """

    spec: TrainSpec
    step: int
    prompts: Sequence[Prompt]
    sampler: Sampler
    tokenizer: Any
    grade: GradeFunction
    kept: KeptGroups
    world: World
    phase: Callable[[str], AbstractContextManager[None]]
    heartbeat: OnProgress
    stop_requested: Callable[[], bool]
    first: int
    samples: int
    ungraded: dict[int, list[Completion]] = field(default_factory=dict)
    underway: Future[dict[int, Group]] | None = None
    unsaved: dict[int, Group] = field(default_factory=dict)
    started_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)

    def run(self) -> list[Group] | None:
        """All groups, on every rank; None where a stop was requested. Collective."""
        self.heartbeat(0, 0)
        stored = self.kept.read(self.step, self.prompts, self.first)
        found = {place - self.first: group for place, group in stored.items()}
        # Waits for all ranks: none writes before all have read.
        kept = self.world.gather({self.world.rank: sorted(found)})[0]
        groups = {place: found[place] for place in kept}
        if len(kept) == len(self.prompts):
            self.sampler.sleep()  # It is awake since it took the weights.
            own, is_stopped = {}, False
        else:
            own, is_stopped = self._sample(set(kept))
        if self.world.any(is_stopped or self.stop_requested()):
            self.save()
            return None
        if time.monotonic() - self.started_at > _KEEP_SECONDS:
            self.save()  # The last groups are the longest ones; a kill within the updates does not lose them.
        for part in self.world.gather({self.world.rank: own}):
            groups |= part
        return [groups[place] for place in range(len(self.prompts))]

    def _sample(self, done: set[int]) -> tuple[dict[int, Group], bool]:
        """This rank's groups, and whether it left early because a stop was requested."""
        own: dict[int, Group] = {}
        is_stopped = False
        with ThreadPoolExecutor(1) as grader:
            with self.phase("sampling"):
                try:
                    for place, completions in self._stream(done):
                        self.ungraded[place] = completions
                        own |= self._grade(grader)
                except Stopped:
                    is_stopped = True
            if self.ungraded or self.underway or not is_stopped:
                with self.phase("grading"):
                    own |= self._grade(grader, waits=True)
        return own, is_stopped

    def _stream(self, done: set[int]) -> Iterator[tuple[int, list[Completion]]]:
        return self.sampler.stream_portions(
            portions(self.sampler, len(self.prompts), self.world),
            [prompt.prompt_ids for prompt in self.prompts],
            step_seeds(self.spec, self.prompts, self.step, self.first, samples=self.samples),
            self.spec.on_policy.sampling,
            done=done,
            on_progress=self._on_progress,
        )

    def _on_progress(self, finished: int, tokens: int) -> None:
        """Leave at once if a stop was requested: sampling a step can take longer than Slurm waits before it kills."""
        self.heartbeat(finished, tokens)
        if self.stop_requested():
            raise Stopped

    def _grade(self, grader: Executor, *, waits: bool = False) -> dict[int, Group]:
        """Groups whose grading has ended, or all with `waits`; what is not graded yet goes to the grader's thread."""
        found: dict[int, Group] = {}
        while True:
            if self.underway is not None and (waits or self.underway.done()):
                found |= self.underway.result()
                self.underway = None
            if self.underway is not None or not self.ungraded:
                break
            self.underway = grader.submit(self._graded, self.ungraded)
            self.ungraded = {}
        return found

    def _graded(self, completions: Mapping[int, list[Completion]]) -> dict[int, Group]:
        """Grade groups, and keep them if it is time; in the grader's thread, so that sampling waits for neither."""
        prompts = [self.prompts[place] for place in completions]
        groups = grade_groups(prompts, list(completions.values()), self.tokenizer, self.grade)
        found = dict(zip(completions, groups, strict=True))
        self.unsaved |= found
        if time.monotonic() - self.saved_at > _KEEP_SECONDS:
            self.save()
        return found

    def save(self) -> None:
        """Keep the graded groups of this rank that are not kept yet. By the grader's thread, or while it is idle."""
        if self.unsaved:
            self.kept.add(self.step, {self.first + place: group for place, group in self.unsaved.items()})
        self.unsaved, self.saved_at = {}, time.monotonic()
