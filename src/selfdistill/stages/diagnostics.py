"""Where the loss of distillation lies in stored completions, and what became of the branches in them.

Nothing is trained or evaluated again: completions are those of an `evaluate` artifact, solutions those of a `contexts`
artifact on the same problems. Only the branches of `branches` completions are sampled, if any are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from selfdistill.artifacts.tables import read_rows, write_table
from selfdistill.contexts import encode_context
from selfdistill.diagnostics import CLASSES, cuts, ends_in_loop, forks, token_classes
from selfdistill.generation import sample_seed
from selfdistill.generation.budgets import budget_groups, generate_within
from selfdistill.generation.intervention import Intervention
from selfdistill.generation.loading import load_model, load_sampler, load_tokenizer
from selfdistill.grading import WorkerPool
from selfdistill.rollouts import Prompt, grade_function, grade_groups
from selfdistill.run.job import Job, in_words
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import DiagnosticsSpec, EvaluateSpec
from selfdistill.stages.shared.generate import read_prompts
from selfdistill.stages.shared.models import model_folder
from selfdistill.thinking import Thinking
from selfdistill.training.network import Network
from selfdistill.training.token_measures import Shown, TokenMeasures, class_gradients, token_measures

_NEEDED = ("step", "row_id", "sample", "problem_id", "family", "completion_ids", "reward", "extracted", "stop_reason")
SUMS = ("loss", "kl", "gap", "pmi", "logit_gradient")

Row = dict[str, Any]


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(DiagnosticsSpec)
    return Diagnosis(job, spec).run()


class Diagnosis:
    """All checkpoints of one evaluation."""

    def __init__(self, job: Job, spec: DiagnosticsSpec) -> None:
        self.job, self.spec = job, spec
        self.evaluation = job.artifact.input("rollouts")
        self.sampled = self.evaluation.spec(EvaluateSpec)
        base = model_folder(job.artifact.input("base"))
        self.tokenizer = load_tokenizer(base)
        temperature = self.sampled.sampling.temperature or 1.0
        self.network = lambda folder: Network(load_model(folder, job.runtime.device), temperature=temperature)
        self.base = self.network(base)
        self._text_of = cache(lambda token: self.tokenizer.decode([token]))
        self.openings = [mark.opening for mark in Thinking.of(self.tokenizer).marks]
        prompts = read_prompts(self.evaluation)[: spec.limit]
        self.prompts = {prompt.row_id: prompt for prompt in prompts}
        self.contexts = dict(self._contexts(prompts))

    def _contexts(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[int]]]:
        """Prompts with a solution, by row, of the problems that have one."""
        spec = self.spec
        table = self.job.artifact.input("contexts").payload / "contexts.parquet"
        found = {row["problem_id"]: row for row in read_rows(table)}
        for prompt in prompts:
            row = found.get(prompt.problem_id)
            if row is not None:
                yield prompt.row_id, encode_context(
                    self.tokenizer, prompt.messages, row["kind"], row["context"], spec.reprompt, spec.thinking,
                    spec.max_reprompt_tokens,
                )[0]  # fmt: skip

    def run(self) -> dict[str, Any]:
        if not self.contexts:
            raise UserError(f"{self.job.artifact.name}: no problem has a solution to show: raise `samples`.")
        everything = read_rows(self.evaluation.payload / "rollouts.parquet", _NEEDED)
        tokens: list[Row] = []
        completions: list[Row] = []
        gradients: list[Row] = []
        summary: dict[str, Any] = {}
        for step in self.spec.steps:
            rows = [row for row in everything if row["step"] == step and row["row_id"] in self.prompts]
            found = self._step(step, rows)
            tokens += found[0]
            completions += found[1]
            gradients += found[2]
            summary[f"step-{step}"] = _described(*found)
            self.job.tee.print(f"step {step}: {in_words(summary[f'step-{step}'])}")
        for name, table in (("tokens", tokens), ("completions", completions), ("gradients", gradients)):
            write_table(self.job.artifact.payload / f"{name}.parquet", pa.Table.from_pylist(table))
        return summary

    def _step(self, step: int, rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
        """Sums over the parts of each completion, values of completions, gradient norms of classes."""
        folder = model_folder(self.evaluation.input("model"), step)
        student = self.network(folder)
        with_context = [row for row in rows if row["row_id"] in self.contexts and row["completion_ids"]]
        shown = [
            Shown(self.prompts[row["row_id"]].prompt_ids, self.contexts[row["row_id"]], row["completion_ids"])
            for row in with_context
        ]
        budget = self.job.runtime.micro_batch_tokens
        measures = token_measures(student, self.base, shown, self.spec.alpha, budget)
        classes = [token_classes(self._texts(row), self.spec.words, self.openings) for row in with_context]
        tokens = [
            _about(row) | part
            for row, found, own in zip(with_context, measures, classes, strict=True)
            for part in _parts(found, own)
        ]
        own_forks = {
            id(row): forks(found.student_entropy, found.teacher_entropy, self.spec.fork_entropy)
            for row, found in zip(with_context, measures, strict=True)
        }
        branches = self._branches(folder, with_context, measures)
        completions = [
            _about(row)
            | {
                "reward": row["reward"],
                "answer": row["extracted"] or "",
                "tokens": len(row["completion_ids"]),
                "is_looping": row["stop_reason"] == "length" and ends_in_loop(row["completion_ids"]),
                "has_context": id(row) in own_forks,
                "forks": own_forks[id(row)].all if id(row) in own_forks else None,
                "undecided_forks": own_forks[id(row)].undecided if id(row) in own_forks else None,
                "branch_reward": branches.get(id(row)),
            }
            for row in rows
        ]
        norms = self._gradients(student, shown, classes) if self.spec.gradients else {}
        gradients = [{"step": step, "value": name, "norm": norm} for name, norm in norms.items()]
        return tokens, completions, gradients

    def _texts(self, row: Row) -> list[str]:
        return list(map(self._text_of, row["completion_ids"]))

    def _gradients(self, student: Network, shown: list[Shown], classes: list[list[str]]) -> dict[str, float]:
        total = sum(map(len, classes))
        of_class = {
            name: [torch.tensor([float(own == name) / total for own in row]) for row in classes] for name in CLASSES
        }
        weights = of_class | {"all": [torch.full((len(row),), 1.0 / total) for row in classes]}
        return class_gradients(student, self.base, shown, weights, self.spec.alpha, self.job.runtime.micro_batch_tokens)

    def _branches(self, folder: Any, rows: list[Row], measures: list[TokenMeasures]) -> dict[int, float]:
        """Mean reward of what goes on from a fork with another token, for the first completions with a fork."""
        chosen = []
        for row, found in zip(rows, measures, strict=True):
            place = int(found.student_entropy.argmax())
            if len(chosen) < self.spec.branches and found.student_entropy[place] > self.spec.fork_entropy:
                chosen.append((row, [*row["completion_ids"][:place], int(found.alternatives[place])]))
        if not chosen:
            return {}
        prompts = [self.prompts[row["row_id"]] for row, _ in chosen]
        begun = [[*prompt.prompt_ids, *ids] for prompt, (_, ids) in zip(prompts, chosen, strict=True)]
        seeds = [
            [
                sample_seed(self.sampled.seed, "branch", row["row_id"], row["sample"], n)
                for n in range(self.spec.branch_samples)
            ]
            for row, _ in chosen
        ]
        sampling = self.sampled.sampling
        budgets = [sampling.max_tokens - len(ids) for _, ids in chosen]
        positions = getattr(self.base.model.config, "max_position_embeddings", None)
        together = budget_groups(list(map(len, begun)), budgets, positions)
        longest = (max(len(begun[p]) for p in group) + max(budgets[p] for p in group) for group in together)
        sampler = load_sampler(
            folder,
            self.sampled.engine,
            self.job.runtime,
            max_positions=max(longest, default=1),
            kv_cache_dtype=self.sampled.kv_cache_dtype,
        )
        with closing(sampler), WorkerPool(self.job.runtime.grader_processes) as pool:
            sampled = generate_within(sampler, together, begun, seeds, sampling, budgets)
            whole = [
                [Intervention(prefix=tuple(ids)).completion(one) for one in group]
                for (_, ids), group in zip(chosen, sampled, strict=True)
            ]
            groups = grade_groups(prompts, whole, self.tokenizer, grade_function(self.sampled.grader, pool))
        return {
            id(row): float(np.mean([rollout.reward for rollout in group]))
            for (row, _), group in zip(chosen, groups, strict=True)
        }


def _about(row: Row) -> Row:
    return {name: row[name] for name in ("step", "row_id", "sample", "family")}


def _parts(found: TokenMeasures, classes: Sequence[str]) -> Iterator[Row]:
    """Tokens and sums of each part of a completion."""
    for cut, parts in cuts(classes):
        names = np.array(parts)
        for value in dict.fromkeys(parts):
            is_part = names == value
            sums = {name: float(getattr(found, name)[is_part].sum()) for name in SUMS}
            yield {"cut": cut, "value": value, "tokens": int(is_part.sum()), **sums}


def _described(tokens: list[Row], completions: list[Row], gradients: list[Row]) -> dict[str, Any]:
    """Main numbers of one checkpoint; it counts the completions of problems without a solution to show."""
    loss, count = Counter(), Counter()
    for row in tokens:
        if row["cut"] == "class":
            loss[row["value"]] += row["loss"]
            count[row["value"]] += row["tokens"]
    shown = [row for row in completions if row["has_context"]]
    found_forks = sum(row["forks"] for row in shown)
    return {
        "completions": len(completions),
        "completions_without_context": len(completions) - len(shown),
        "loss_per_token": sum(loss.values()) / max(sum(count.values()), 1),
        "loss_share": {name: loss[name] / max(sum(loss.values()), 1e-12) for name in CLASSES},
        "gradient_norm": {row["value"]: row["norm"] for row in gradients},
        "fork_rate": sum(row["undecided_forks"] for row in shown) / max(found_forks, 1),
        "loop_rate": sum(row["is_looping"] for row in completions) / max(len(completions), 1),
    }
