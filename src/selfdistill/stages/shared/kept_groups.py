"""Graded groups of a training, kept between resume states: part files in the artifact's state/rollouts/step-N."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfdistill.generation import Completion
from selfdistill.rollouts import Group, Prompt, Rollout
from selfdistill.run.job import Shard
from selfdistill.stages.shared.parts import PartFiles

_COLUMNS = (
    "place", "sample", "completion", "completion_ids", "logprobs", "stop_reason", "outcome", "reward", "extracted",
    "feedback",
)  # fmt: skip


class GroupFiles:
    """See `training.sampling.KeptGroups`. `rank` of `ranks` writes files of its own and reads those of all."""

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        self.folder = folder
        self.shard = Shard(rank, ranks)

    def read(self, step: int, prompts: Sequence[Prompt], first: int = 0) -> dict[int, Group]:
        parts = self._parts(step)
        places = sorted(parts.finished() & set(range(first, first + len(prompts))))
        return {
            place: [_rollout(row, prompts[place - first]) for row in table.to_pylist()]
            for place, table in zip(places, parts.groups(places), strict=True)
        }

    def add(self, step: int, groups: Mapping[int, Group]) -> None:
        self._parts(step).add([_row(rollout, place) for place, group in groups.items() for rollout in group])

    def drop(self, step: int) -> None:
        for folder in self.folder.glob("step-*"):
            if int(folder.name.removeprefix("step-")) <= step:
                shutil.rmtree(folder)

    def _parts(self, step: int) -> PartFiles:
        return PartFiles(self.folder / f"step-{step}", self.shard, _COLUMNS, key="place")


def _row(rollout: Rollout, place: int) -> dict[str, object]:
    """A rollout without its prompt, which follows from the step and the place."""
    return {
        "place": place,
        "sample": rollout.sample,
        "completion": rollout.text,
        "completion_ids": rollout.completion.token_ids,
        "logprobs": rollout.completion.logprobs,
        "stop_reason": rollout.completion.stop_reason,
        "outcome": rollout.outcome,
        "reward": rollout.reward,
        "extracted": rollout.extracted,
        "feedback": rollout.feedback,
    }


def _rollout(row: Mapping[str, object], prompt: Prompt) -> Rollout:
    return Rollout(
        prompt=prompt,
        sample=row["sample"],
        completion=Completion(row["completion_ids"], row["logprobs"], row["stop_reason"]),
        text=row["completion"],
        outcome=row["outcome"],
        reward=row["reward"],
        extracted=row["extracted"],
        feedback=row["feedback"],
    )
