"""The evaluation rows of a plan, put together: one experiment on one benchmark, with base, seeds and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from selfdistill.schema.errors import UserError
from selfdistill.views.measures import Measurement, measure, pooled

Row = dict[str, Any]

#: Seed column of rows that average over the training seeds, and of rows of the base model.
ALL_SEEDS = "all"
BASE = "base"
ARTIFACTS = ("train_artifact", "evaluate_artifact", "epistemics_artifact")


@dataclass(frozen=True)
class Evaluation:
    """One experiment on one benchmark; `seeds` maps the training seed to the plan's row, `base` is the base's row."""

    benchmark: str
    domain: str
    base: Row
    seeds: dict[int, Row]

    @property
    def about(self) -> Row:
        """What the plan says of the experiment: experiment, model, method, context, arm, label, distinct."""
        names = ("experiment", "model", "method", "context", "arm", "label", "distinct")
        return {name: self.base.get(name) for name in names}

    @property
    def steps(self) -> list[int]:
        """Evaluated checkpoints that every seed has, base excluded."""
        found = [set(_measure(row)) for row in self.seeds.values()]
        steps = sorted(set.intersection(*found))
        if not steps:
            raise UserError(f"{self.base['experiment']}: no checkpoint was evaluated for every seed.")
        return steps

    def base_measurement(self) -> Measurement:
        return _measure(self.base)[0]

    def measurement(self, step: int, seed: int | str = ALL_SEEDS) -> Measurement:
        """One seed, or all of them averaged; step 0 is the base whatever the seed."""
        if step == 0:
            return self.base_measurement()
        return pooled([_measure(row)[step] for row in self._rows(seed)])

    def last(self, seed: int | str = ALL_SEEDS) -> Measurement:
        """The last evaluated checkpoint."""
        return self.measurement(self.steps[-1], seed)

    def cells(self) -> list[tuple[int | str, int]]:
        """(seed, step) of every row of a table by step: base, each seed, all seeds from step 0 on."""
        trained = [(seed, step) for seed in self.seeds for step in self.steps]
        return [(BASE, 0), *trained, *((ALL_SEEDS, step) for step in (0, *self.steps))]

    def artifacts(self, step: int, seed: int | str = ALL_SEEDS) -> Row:
        """Names of the artifacts behind a number; several are joined with a semicolon."""
        rows = [self.base] if step == 0 else self._rows(seed)
        return {name: ";".join(dict.fromkeys(row[name] for row in rows)) for name in ARTIFACTS}

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
        found.append(Evaluation(benchmark, base["domain"], base, by_seed))
    return found


def _measure(row: Row) -> dict[int, Measurement]:
    return measure(row["evaluate_artifact"], row["epistemics_artifact"])
