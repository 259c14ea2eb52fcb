"""What the rows of a plan stand for: evaluated experiments, training runs, and all that is known of a base model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selfdistill.artifacts.verification import check_file
from selfdistill.plan.pairs import SECTION as PAIRS
from selfdistill.schema.errors import UserError
from selfdistill.seeds import Uncertain
from selfdistill.views.measures import ALL, Measurement, measure, open_artifact, pooled
from selfdistill.views.style import Kind, Look, looks

Row = dict[str, Any]
#: Seed column of rows that average over the training seeds, and of rows of the base model.
ALL_SEEDS = "all"
BASE = "base"
OUT_OF_DISTRIBUTION = "ood"
ARTIFACTS = ("train_artifact", "evaluate_artifact", "epistemics_artifact")
#: Names that the trainer gives its scalars.
REWARD, TOKENS, WORDS = "reward_mean", "completion_tokens_mean", "epistemic_count_mean"
#: Steps at the end over which the training score is averaged.
FINAL_STEPS = 10


@dataclass(frozen=True)
class Evaluation:
    """One experiment on one benchmark; `seeds` maps the training seed to the plan's row, `base_row` is the base's."""

    benchmark: str
    base_row: Row
    seeds: dict[int, Row]

    @property
    def experiment(self) -> str:
        return self.base_row["experiment"]

    @property
    def kind(self) -> Kind:
        return self.base_row["method"], self.base_row["context"]

    @property
    def arm(self) -> str | None:
        """Which completions an SFT run was trained on; None for methods that sample."""
        return self.base_row["arm"]

    @property
    def distinct(self) -> int | None:
        """Number of distinct training problems of a coverage sweep; None for the whole data set."""
        return self.base_row.get("distinct")

    @property
    def domain(self) -> str:
        return self.base_row["domain"]

    def chance(self, family: str = ALL) -> float | None:
        """Accuracy of a random guess, if the benchmark says so; of all families by their numbers of problems."""
        rates = self.base_row.get("chance") or {}
        if family != ALL or ALL in rates:
            return rates.get(family, rates.get(ALL))
        families = self.base.families
        if not families or not all(name in rates for name in families):
            return None
        return sum(rates[name] * self.base.n(name) for name in families) / self.base.n()

    def bounds(self, family: str = ALL) -> tuple[float, ...]:
        """What an accuracy lies between: chance, where it is known, and 100 %."""
        chance = self.chance(family)
        return (1.0,) if chance is None else (chance, 1.0)

    @property
    def steps(self) -> list[int]:
        """Evaluated checkpoints that every seed has, base excluded."""
        steps = sorted(set.intersection(*(set(_measure(row)) for row in self.seeds.values())))
        if not steps:
            raise UserError(f"{self.experiment}: no checkpoint was evaluated for every seed.")
        return steps

    @property
    def base(self) -> Measurement:
        return _measure(self.base_row)[0]

    def measurement(self, step: int, seed: int | str = ALL_SEEDS) -> Measurement:
        """One seed, or all of them averaged; step 0 is the base whatever the seed."""
        return self.base if step == 0 else pooled([_measure(row)[step] for row in self._rows(seed)])

    def last(self, seed: int | str = ALL_SEEDS) -> Measurement:
        """The last evaluated checkpoint."""
        return self.measurement(self.steps[-1], seed)

    def change(self, metric: str, family: str = ALL) -> Uncertain:
        """The last checkpoint minus the base, paired over problems."""
        return self.last().difference(self.base, metric, family)

    def cells(self) -> list[tuple[int | str, int]]:
        """(seed, step) of every row of a table by step: base, each seed, all seeds from step 0 on."""
        trained = [(seed, step) for seed in self.seeds for step in self.steps]
        return [(BASE, 0), *trained, *((ALL_SEEDS, step) for step in (0, *self.steps))]

    def last_cells(self) -> list[tuple[int | str, int]]:
        """(seed, step) of every row of a table that shows the last checkpoint only."""
        return [(seed, self.steps[-1]) for seed in (*self.seeds, ALL_SEEDS)]

    def names(self, role: str, seed: int | str = ALL_SEEDS, step: int | None = None) -> list[str]:
        """Artifacts behind a number, such as all its `train_artifact`s; those of the base for step 0."""
        rows = [self.base_row] if step == 0 else self._rows(seed)
        return list(dict.fromkeys(row[role] for row in rows))

    def _rows(self, seed: int | str) -> list[Row]:
        return list(self.seeds.values()) if seed == ALL_SEEDS else [self.seeds[seed]]


def evaluations(rows: Iterable[Row]) -> list[Evaluation]:
    """Group a plan's rows of kind `evaluation`, in the plan's order; UserError if one lacks base or seeds."""
    grouped: dict[tuple[str, str], dict[int | None, Row]] = {}
    for row in rows:
        if row["kind"] == "evaluation":
            grouped.setdefault((row["experiment"], row["benchmark"]), {})[row["seed"]] = row
    found = []
    for (experiment, benchmark), by_seed in grouped.items():
        base = by_seed.pop(None, None)
        if base is None or not by_seed:
            raise UserError(f"the plan of {experiment} on {benchmark} lacks the base or the seeds: plan it again.")
        found.append(Evaluation(benchmark, base, by_seed))
    return found


def _measure(row: Row) -> dict[int, Measurement]:
    return measure(row["evaluate_artifact"], row["epistemics_artifact"])


def context_measurement(row: Row) -> Measurement:
    """The completions of one teacher context (a plan's row of kind `richness`)."""
    by_step = measure(row["rollouts_artifact"], row["epistemics_artifact"])
    return by_step[min(by_step)]


@dataclass
class ModelStudy:
    """Everything that a report shows of one base model."""

    model: str
    looks: dict[str, Look]
    lexicon: list[str]
    main: list[Evaluation] = field(default_factory=list)
    training: dict[str, list[str]] = field(default_factory=dict)
    richness: dict[str, Row] = field(default_factory=dict)
    sft: list[Evaluation] = field(default_factory=list)
    coverage: list[Evaluation] = field(default_factory=list)
    #: Rows of the plan, of every variant; `views.forced` sorts them.
    forced: list[Row] = field(default_factory=list)
    tuning: list[Evaluation] = field(default_factory=list)
    diagnostics: list[Row] = field(default_factory=list)
    cures: list[Row] = field(default_factory=list)
    cure_looks: dict[str, Look] = field(default_factory=dict)

    @property
    def experiments(self) -> list[str]:
        return list(dict.fromkeys(e.experiment for e in self.main))

    def benchmarks(self, domain: str | None = None) -> list[str]:
        """Benchmarks of the main experiments, in the plan's order; of one domain if given."""
        return list(dict.fromkeys(e.benchmark for e in self.main if domain in (None, e.domain)))

    @property
    def main_benchmarks(self) -> list[str]:
        """The out-of-distribution benchmarks, or all if there is none."""
        return self.benchmarks(OUT_OF_DISTRIBUTION) or self.benchmarks()

    def on(self, benchmark: str) -> dict[str, Evaluation]:
        """Experiment -> evaluation, of those that were evaluated on a benchmark."""
        return {e.experiment: e for e in self.main if e.benchmark == benchmark}

    def by_method(self, benchmark: str) -> dict[Kind, Evaluation]:
        """(method, context) -> the first experiment of that kind, on a benchmark."""
        return {e.kind: e for e in reversed(self.on(benchmark).values())}

    def contexts(self) -> dict[str, Measurement]:
        return {context: context_measurement(row) for context, row in self.richness.items()}


def read_study(plan: dict[str, Any]) -> list[ModelStudy]:
    """Sort the rows of the report's plan by model and section; every experiment gets one look."""
    # Chosen pairs have sections of their own, and may be of any experiment.
    rows: list[Row] = [row for row in plan["rows"] if row.get("section") != PAIRS]
    # What a sweep makes shares the look of its parent experiment, so it gets no label of its own.
    chosen = looks(
        row
        for row in rows
        if row["kind"] != "richness"
        and row.get("distinct") is None
        and not row.get("setting")
        and row.get("section") != "cures"
    )
    return [_model_study(name, rows, chosen, plan["lexicon"]) for name in dict.fromkeys(row["model"] for row in rows)]


def _model_study(model: str, rows: list[Row], chosen: dict[str, Look], lexicon: list[str]) -> ModelStudy:
    def section(name: str | None) -> list[Row]:
        return [row for row in rows if row["model"] == model and row.get("section") == name]

    study = ModelStudy(model, chosen, lexicon, main=evaluations(section(None)))
    for row in section(None):
        if row["kind"] == "training":
            study.training.setdefault(row["experiment"], []).append(row["train_artifact"])
    study.richness = {row["context"]: row for row in section("richness")}
    study.sft = evaluations(section("sft"))
    study.coverage = evaluations(section("coverage"))
    study.forced = section("forced")
    study.tuning = evaluations(section("tuning"))
    study.diagnostics = section("diagnostics")
    study.cures = section("cures")
    study.cure_looks = looks(section("cures"))
    return study


def curves(train: str) -> pd.DataFrame:
    """Scalars of a training run, index step; a step written twice (after a resume) counts as it was written last."""
    return _curves(open_artifact(train).metrics.absolute())


@cache
def _curves(path: Path) -> pd.DataFrame:
    check_file(path.parent, path.name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
        by_step = {int(record["step"]): _scalars(record) for record in records}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: discard the run and train again.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): discard the run and train again.") from None
    if not by_step:
        raise UserError(f"{path} holds no step: discard the run and train again.")
    return pd.DataFrame.from_dict(by_step, orient="index").sort_index().rename_axis("step")


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    numbers = {k: v for k, v in record.items() if isinstance(v, Real) and not isinstance(v, bool) and k != "step"}
    return {name: float(value) for name, value in numbers.items()}


def final_values(trains: Sequence[str], column: str) -> NDArray[np.float64] | None:
    """The last FINAL_STEPS values of a scalar of each run, [runs, steps].

    None for a method that writes no such scalar (SFT has no reward). The shortest run decides how many there are.
    """
    tables = [curves(name) for name in trains]
    if any(column not in table or table[column].dropna().empty for table in tables):
        return None
    values = [table[column].dropna().to_numpy()[-FINAL_STEPS:] for table in tables]
    shortest = min(len(v) for v in values)
    return np.array([v[-shortest:] for v in values])
