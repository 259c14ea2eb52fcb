"""Completions to read: the same problem under the base model and every method, epistemic words marked.

Problems are not picked: the page takes the first of every family in the order of the benchmark, and the first sample
of the lowest training seed at the last checkpoint. `selfdistill show` reaches all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from selfdistill.artifacts.store import Artifact
from selfdistill.epistemic import mark
from selfdistill.schema.errors import UserError
from selfdistill.views.measures import open_artifact, read_table
from selfdistill.views.page import Section
from selfdistill.views.study import Evaluation, ModelStudy
from selfdistill.views.style import BASE_LOOK, Look

#: Problems of each family that the page shows at once, and behind the button.
SHOWN, MORE = 1, 3
_COLUMNS = ["step", "row_id", "sample", "family", "answer", "completion", "completion_tokens", "stop_reason", "outcome"]


@dataclass(frozen=True)
class Completion:
    """One completion: whose it is, how it was graded, and its text in pieces (text, is an epistemic word)."""

    look: Look
    outcome: str
    tokens: int
    is_truncated: bool
    pieces: Sequence[tuple[str, bool]]

    @property
    def is_right(self) -> bool:
        return self.outcome == "correct"

    @property
    def words(self) -> int:
        return sum(is_word for _, is_word in self.pieces)


@dataclass(frozen=True)
class Problem:
    """One problem with a completion of each model."""

    row_id: int
    family: str
    question: str
    answer: str
    completions: Sequence[Completion]


@dataclass(frozen=True)
class Reading:
    """A block of the page: problems that are shown, and those behind the button."""

    shown: Sequence[Problem]
    more: Sequence[Problem]


def completions_of(evaluate_artifact: str, step: int) -> pd.DataFrame:
    """Graded completions of one checkpoint, a row per problem and sample, with the question."""
    return _completions(open_artifact(evaluate_artifact).folder.resolve(), step)


@lru_cache(maxsize=64)
def _completions(folder: Path, step: int) -> pd.DataFrame:
    table = read_table(folder / "payload" / "rollouts.parquet", _COLUMNS)
    prompts = Artifact.open(folder).input("prompts")
    questions = read_table(prompts.payload / "prompts.parquet", ["row_id", "question"])
    return table[table["step"] == step].merge(questions, on="row_id", how="left").sort_values(["row_id", "sample"])


@dataclass(frozen=True)
class Source:
    """One model's completions: its look, its `evaluate` artifact, its step."""

    look: Look
    artifact: str
    step: int

    def completion(self, row_id: int, sample: int, lexicon: Sequence[str]) -> Completion:
        """UserError if the problem was not evaluated."""
        table = completions_of(self.artifact, self.step)
        found = table[(table["row_id"] == row_id) & (table["sample"] == sample)]
        if found.empty:
            raise UserError(f"{self.artifact} has no completion {sample} of problem {row_id} at step {self.step}.")
        row = found.iloc[0]
        return Completion(
            self.look,
            row["outcome"],
            int(row["completion_tokens"]),
            row["stop_reason"] == "length",
            mark(row["completion"], lexicon),
        )


def sources_of(evaluation: Evaluation, look: Look, seed: int | None = None) -> list[Source]:
    """The base model and one training seed (the lowest) of an experiment at its last checkpoint."""
    chosen = min(evaluation.seeds) if seed is None else seed
    if chosen not in evaluation.seeds:
        raise UserError(
            f"{evaluation.experiment} has no seed {chosen}; it has {', '.join(map(str, evaluation.seeds))}."
        )
    base = Source(BASE_LOOK, evaluation.base_row["evaluate_artifact"], 0)
    return [base, Source(look, evaluation.seeds[chosen]["evaluate_artifact"], evaluation.steps[-1])]


def problem(row_id: int, sources: Sequence[Source], lexicon: Sequence[str], sample: int = 0) -> Problem:
    """A problem under several models."""
    table = completions_of(sources[0].artifact, sources[0].step)
    rows = table[table["row_id"] == row_id]
    if rows.empty:
        raise UserError(f"the benchmark has no problem {row_id}; it has {table['row_id'].nunique()}, from 0.")
    about = rows.iloc[0]
    answers = [source.completion(row_id, sample, lexicon) for source in sources]
    return Problem(row_id, about["family"], about["question"], about["answer"], answers)


def reading_section(study: ModelStudy) -> Section | None:
    """The first problems of every family under all methods; None where nothing was evaluated."""
    if not study.main_benchmarks:
        return None
    name = study.main_benchmarks[0]
    found = study.on(name)
    sources = [source for e in found.values() for source in sources_of(e, study.looks[e.experiment])]
    sources = list({(s.artifact, s.step): s for s in sources}.values())
    table = completions_of(sources[0].artifact, 0)
    by_family = table[table["sample"] == 0].groupby("family", sort=True)["row_id"]
    chosen = [list(rows)[: SHOWN + MORE] for _, rows in by_family]
    shown = [problem(row, sources, study.lexicon) for rows in chosen for row in rows[:SHOWN]]
    more = [problem(row, sources, study.lexicon) for rows in chosen for row in rows[SHOWN:]]
    right = {s.look.label: sum(c.is_right for p in (*shown, *more) for c in p.completions if c.look == s.look)
             for s in sources}  # fmt: skip
    lead = f"Of these {len(shown) + len(more)} problems of {name}, right are " + ", ".join(
        f"{label} {number}" for label, number in right.items()
    )
    notes = (
        f"Not picked: the first {SHOWN + MORE} problems of each family in the order of {name}, the first sample of the "
        "lowest training seed, last checkpoint. Epistemic words are marked by the paper's rule. All others: "
        "selfdistill show EXPERIMENT.",
    )
    return Section("completions", "Side by side", f"{lead}.", [Reading(shown, more)], notes)
