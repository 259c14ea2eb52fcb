"""Sampling and grading from a finished model. Finished completions are kept in part files and not sampled again."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from selfdistill.artifacts.store import Artifact
from selfdistill.artifacts.tables import read_rows, rollout_columns
from selfdistill.generation import Completion, Sampler
from selfdistill.generation.intervention import Intervention
from selfdistill.generation.loading import load_sampler, load_tokenizer, sampler_class
from selfdistill.grading import OUTCOMES, WorkerPool
from selfdistill.rollouts import Prompt, grade_function, grade_groups, rollout_rows, sampling_seeds
from selfdistill.run.job import Job
from selfdistill.schema.errors import Interrupted
from selfdistill.schema.shared import InterventionFields
from selfdistill.schema.stages import EvaluateSpec, RolloutsSpec
from selfdistill.stages.shared.models import model_folder
from selfdistill.stages.shared.outside_code import check_grader
from selfdistill.stages.shared.parts import PartFiles, merge
from selfdistill.stages.shared.shard_queue import ShardQueue

_PROMPT_COLUMNS = tuple(field.name for field in fields(Prompt))
_DESCRIBED = ("step", "outcome", "reward", "completion_tokens", "stop_reason")


def read_prompts(artifact: Artifact, role: str = "prompts") -> list[Prompt]:
    """The prompts of an input artifact, in order."""
    rows = read_rows(artifact.input(role).payload / "prompts.parquet")
    values = ({name: row[name] for name in _PROMPT_COLUMNS if name in row} for row in rows)
    return [Prompt(**{**row, "messages": json.loads(row["messages"])}) for row in values]


@dataclass
class RolloutJob:
    """Graded completions of a model's checkpoints on the same prompts.

    The seed of a completion depends on its row and sample number, not on the call, the shard or the checkpoint: an
    interrupted or sharded job samples the same texts, and checkpoints are compared under common random numbers.
    """

    job: Job
    spec: RolloutsSpec | EvaluateSpec
    prompts: Sequence[Prompt]
    changes: InterventionFields = InterventionFields()
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        self.model: Artifact = self.job.artifact.input("model")

    def sample(self, step: int | None) -> None:
        """Sample and grade what is missing at one checkpoint (None: a base model), and what no other shard samples.

        Raises Interrupted when a stop is requested; finished prompts are kept.
        """
        prompts, parts = self.prompts, self._parts(step)
        finished = parts.finished()
        done = {index for index, prompt in enumerate(prompts) if prompt.row_id in finished}
        if len(done) == len(prompts):
            return
        if done:
            self.job.tee.print(f"step {step or 0}: {len(done)} of {len(prompts)} prompts were finished before.")
        portions = self._portions(parts, finished)
        first = next(portions, None)
        if first is None:
            self.job.tee.print(f"step {step or 0}: other shards have taken all prompts.")
            return
        check_grader(self.spec.grader)
        folder = model_folder(self.model, step)
        tokenizer = load_tokenizer(folder)
        forced = Intervention.of(self.changes, tokenizer)
        sampler = self._sampler(folder)
        sampler.banned = forced.banned
        stream = sampler.stream_portions(
            itertools.chain([first], portions),
            [forced.prompt(prompt.prompt_ids) for prompt in prompts],
            sampling_seeds(self.spec.seed, prompts, self.spec.samples),
            forced.sampling(self.spec.sampling),
            done=done,
            on_progress=self._progress(
                -(-(len(prompts) - len(done)) * self.spec.samples // self.job.shard.count), step
            ),
        )
        ungraded: list[tuple[Prompt, list[Completion]]] = []
        with WorkerPool(self.job.runtime.grader_processes) as pool:
            grade = grade_function(self.spec.grader, pool)

            def save() -> None:
                groups = grade_groups([p for p, _ in ungraded], [c for _, c in ungraded], tokenizer, grade)
                parts.add(rollout_rows(groups, step or 0, self.spec.grader))
                ungraded.clear()

            try:
                for index, completions in stream:
                    ungraded.append((prompts[index], [forced.completion(sampled) for sampled in completions]))
                    if len(ungraded) >= self.job.runtime.part_prompts:
                        save()
            except Interrupted:
                save()
                raise
            save()

    def _portions(self, parts: PartFiles, finished: Set[int]) -> Iterator[list[int]]:
        """Places of prompts that this job samples: all of them, or those that its shard takes from the queue."""
        count = len(self.prompts)
        size = sampler_class(self.spec.engine).portion(count, self.job.shard.count)
        if not self.job.shard.is_partial:
            return (list(range(start, min(start + size, count))) for start in range(0, count, size))
        keys = [prompt.row_id for prompt in self.prompts]
        return ShardQueue(parts.folder, self.job.shard).portions(keys, size, finished)

    def close(self) -> None:
        if self.sampler is not None:
            self.sampler.close()

    def merge(self, steps: Sequence[int | None]) -> Path:
        """Write the payload: the completions of all shards and checkpoints, in order."""
        path = self.job.artifact.payload / "rollouts.parquet"
        merge(path, [self._parts(step) for step in steps], [prompt.row_id for prompt in self.prompts])
        return path

    def _parts(self, step: int | None) -> PartFiles:
        columns = rollout_columns(self.spec.grader.kind)
        return PartFiles(self.job.artifact.state / f"step-{step or 0}", self.job.shard, columns)

    def _progress(self, total: int, step: int | None) -> Callable[[int, int], None]:
        progress = self.job.progress(total, f"sampling, step {step or 0}")

        def on_progress(finished: int, tokens: int) -> None:
            progress(finished, tokens)
            if self.job.stop_requested:
                raise Interrupted("sampling stopped on request; finished prompts are kept.")

        return on_progress

    def _sampler(self, folder: Path) -> Sampler:
        """A sampler over a checkpoint. A vLLM engine starts once and then loads the weights of later checkpoints."""
        if self.sampler is not None and self.spec.engine == "vllm":
            self.sampler.load_weights(folder)
        else:
            longest = max(len(prompt.prompt_ids) for prompt in self.prompts)
            self.sampler = load_sampler(
                folder,
                self.spec.engine,
                self.job.runtime,
                max_positions=longest + self.spec.sampling.max_tokens,
                kv_cache_dtype=self.spec.kv_cache_dtype,
            )
        return self.sampler


def describe(path: Path) -> dict[int, dict[str, Any]]:
    """Summary of a rollouts.parquet by step; it counts everything that can go wrong silently."""
    rows_of: dict[int, list[dict[str, Any]]] = {}
    for row in read_rows(path, _DESCRIBED):
        rows_of.setdefault(row["step"], []).append(row)
    return {step: _describe(rows) for step, rows in rows_of.items()}


def _describe(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    n = len(rows)
    outcomes = Counter(row["outcome"] for row in rows)
    return {
        "completions": n,
        "mean_reward": sum(row["reward"] for row in rows) / n,
        "mean_tokens": sum(row["completion_tokens"] for row in rows) / n,
        "truncation_rate": sum(row["stop_reason"] == "length" for row in rows) / n,
        "outcomes": {name: outcomes.get(name, 0) for name in OUTCOMES},
    }
