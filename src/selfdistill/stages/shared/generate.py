"""Sampling and grading from a finished model: what is finished is kept in part files, and not done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.artifacts.store import Artifact
from selfdistill.artifacts.tables import rollout_columns
from selfdistill.generation import Completion, sample_seed
from selfdistill.grading import WorkerPool, check_machine, grade, shown_answer
from selfdistill.run.job import Job
from selfdistill.schema.errors import Interrupted
from selfdistill.schema.stages import EvaluateSpec, RolloutsSpec
from selfdistill.stages.shared.models import eos_token_ids, load_model, load_tokenizer, model_folder
from selfdistill.stages.shared.parts import PartFiles, merge

Prompt = dict[str, Any]


@dataclass
class Drawing:
    """Graded completions of a model's checkpoints on the same prompts.

    The seed of a completion comes from its row and its number, not from the call or the checkpoint: an interrupted
    or split job draws the same, and checkpoints are compared under common random numbers.
    """

    job: Job
    spec: RolloutsSpec | EvaluateSpec
    prompts: Sequence[Prompt]
    sampler: Any = None

    def __post_init__(self) -> None:
        self.model: Artifact = self.job.artifact.input("model")
        self.own = self.job.shard.own(self.prompts)

    def draw(self, step: int | None) -> None:
        """Sample and grade what is missing of this process's share at one checkpoint (None: a base model).

        Raises Interrupted when the job is asked to stop; what was finished is kept.
        """
        parts = self._parts(step)
        finished = parts.finished()
        done = {index for index, prompt in enumerate(self.own) if prompt["row_id"] in finished}
        if len(done) == len(self.own):
            return
        if done:
            self.job.tee.say(f"step {step or 0}: {len(done)} of {len(self.own)} prompts are kept from before.")
        check_machine(self.spec.grader)
        sampler, tokenizer = self._sampler(step), load_tokenizer(self.model, step)
        seeds = [
            [sample_seed(self.spec.seed, prompt["row_id"], index) for index in range(self.spec.samples)]
            for prompt in self.own
        ]
        stream = sampler.stream(
            [prompt["prompt_ids"] for prompt in self.own],
            seeds,
            self.spec.sampling,
            done=done,
            on_progress=self._progress((len(self.own) - len(done)) * self.spec.samples, step),
        )
        waiting: list[tuple[Prompt, list[Completion]]] = []
        with WorkerPool(self.job.runtime.grader_processes) as pool:
            try:
                for index, completions in stream:
                    waiting.append((self.own[index], completions))
                    if len(waiting) >= self.job.runtime.part_prompts:
                        parts.add(self._graded(waiting, tokenizer, step, pool))
                        waiting = []
            except Interrupted:
                parts.add(self._graded(waiting, tokenizer, step, pool))
                raise
            parts.add(self._graded(waiting, tokenizer, step, pool))

    def close(self) -> None:
        if self.sampler is not None:
            self.sampler.close()

    def merge(self, steps: Sequence[int | None]) -> Path:
        """Write the payload: all shares of all checkpoints."""
        path = self.job.artifact.payload / "rollouts.parquet"
        merge(path, [self._parts(step) for step in steps], [prompt["row_id"] for prompt in self.prompts])
        return path

    def _parts(self, step: int | None) -> PartFiles:
        columns = rollout_columns(self.spec.grader.kind)
        return PartFiles(self.job.artifact.state / f"step-{step or 0}", self.job.shard, columns)

    def _progress(self, total: int, step: int | None) -> Any:
        progress = self.job.progress(total, f"sampling, step {step or 0}")

        def on_progress(finished: int, tokens: int) -> None:
            progress(finished, tokens)
            if self.job.stop_requested:
                raise Interrupted("sampling stopped on request; finished prompts are kept.")

        return on_progress

    def _sampler(self, step: int | None) -> Any:
        """The sampler of the torch or vllm engine, started once; a later checkpoint's weights replace the earlier's."""
        if self.spec.engine == "vllm":
            folder = model_folder(self.model, step)
            if self.sampler is None:
                from selfdistill.generation.vllm_sampler import VllmSampler

                longest = max(len(prompt["prompt_ids"]) for prompt in self.prompts)
                self.sampler = VllmSampler.load(
                    folder, self.job.runtime, max_positions=longest + self.spec.sampling.max_tokens
                )
            else:
                self.sampler.load_weights(folder)
            return self.sampler
        from selfdistill.generation.torch_sampler import TorchSampler

        model = load_model(self.model, step, device=self.job.runtime.device)
        eos = eos_token_ids(model, load_tokenizer(self.model, step))
        self.sampler = TorchSampler(model, sorted(eos), max_batch_tokens=self.job.runtime.sampler_batch_tokens)
        return self.sampler

    def _graded(
        self, drawn: Sequence[tuple[Prompt, list[Completion]]], tokenizer: Any, step: int | None, pool: WorkerPool
    ) -> list[dict[str, Any]]:
        """Rows of rollouts.parquet."""
        rows = [
            {
                **prompt,
                "step": step or 0,
                "sample": index,
                "prompt_tokens": len(prompt["prompt_ids"]),
                "completion": tokenizer.decode(completion.token_ids, skip_special_tokens=True),
                "completion_ids": completion.token_ids,
                "logprobs": completion.logprobs,
                "completion_tokens": len(completion.token_ids),
                "stop_reason": completion.stop_reason,
            }
            for prompt, group in drawn
            for index, completion in enumerate(group)
        ]
        texts, golds, stops = ([row[name] for row in rows] for name in ("completion", "answer", "stop_reason"))
        for row, verdict in zip(rows, grade(texts, golds, stops, self.spec.grader, pool), strict=True):
            row |= {"outcome": verdict.outcome, "reward": verdict.reward, "extracted": verdict.extracted}
            row |= {"feedback": verdict.feedback, "answer": shown_answer(row["answer"], self.spec.grader)}
        return rows
