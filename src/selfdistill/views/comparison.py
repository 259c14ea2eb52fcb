"""Two experiments, seeds or checkpoints compared: settings, scores, words, flipped problems, cost.

All differences are B minus A, paired over the problems that both were evaluated on, with intervals over training seeds
and problems (`selfdistill.seeds`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from selfdistill.artifacts.lineage import provenance_path, read_attempts
from selfdistill.artifacts.store import ROOT
from selfdistill.plan.diff import Change, diff
from selfdistill.schema.errors import UserError
from selfdistill.seeds import Uncertain
from selfdistill.views.claims import verdict
from selfdistill.views.completions import completions_of
from selfdistill.views.measures import ALL, DENSITY, LENGTH, PASS, SCORE, TRUNCATED, Measurement, open_artifact
from selfdistill.views.page import Figure, Section, Table, num, text
from selfdistill.views.study import ALL_SEEDS, TOKENS, Evaluation, curves
from selfdistill.views.style import GRPO, METHODS, NAMES, SDPO, number, shown, signed
from selfdistill.views.training_curves import curve_figure
from selfdistill.views.words import counts_column

#: Flipped problems that are listed by number.
_LISTED = 12
_METRICS = {**NAMES, PASS: "pass@k", TRUNCATED: "cut off by the limit"}
#: How A and B are drawn: in the colours of two methods, which they need not be.
SIDE_LOOKS = (replace(METHODS[GRPO], key="side0"), replace(METHODS[SDPO], key="side1", line="--"))


@dataclass(frozen=True)
class Side:
    """One of the two: an experiment's evaluations, of all seeds or one, at a step (None: the last)."""

    name: str
    evaluations: dict[str, Evaluation]
    seed: int | str
    step: int | None

    @classmethod
    def of(cls, name: str, found: Sequence[Evaluation], seed: int | None, step: int | None) -> Side:
        """UserError for a seed or step that was not evaluated."""
        for evaluation in found:
            if seed is not None and seed not in evaluation.seeds:
                raise UserError(f"{name}: there is no seed {seed}; there are {_listed(evaluation.seeds)}.")
            if step is not None and step not in (0, *evaluation.steps):
                raise UserError(f"{name}: no checkpoint at step {step}; there are {_listed([0, *evaluation.steps])}.")
        return cls(name, {e.benchmark: e for e in found}, ALL_SEEDS if seed is None else seed, step)

    def at(self, evaluation: Evaluation) -> int:
        return evaluation.steps[-1] if self.step is None else self.step

    def measurement(self, benchmark: str) -> Measurement:
        evaluation = self.evaluations[benchmark]
        return evaluation.measurement(self.at(evaluation), self.seed)

    def names(self, benchmark: str, role: str) -> list[str]:
        evaluation = self.evaluations[benchmark]
        return evaluation.names(role, self.seed, self.at(evaluation))

    @property
    def runs(self) -> list[str]:
        """Names of the training artifacts."""
        first = next(iter(self.evaluations.values()))
        return first.names("train_artifact", self.seed)


@dataclass(frozen=True)
class Score:
    """One metric on one benchmark and family."""

    benchmark: str
    family: str
    metric: str
    a: float
    b: float
    difference: Uncertain

    @property
    def verdict(self) -> str:
        """higher, lower, unclear, or one seed."""
        return {"yes": "higher", "no": "lower"}.get(verdict(self.difference), verdict(self.difference))


@dataclass(frozen=True)
class Flips:
    """Problems whose first sample only one of the two gets right (the first seed of each)."""

    benchmark: str
    only_a: list[int]
    only_b: list[int]


@dataclass(frozen=True)
class Comparison:
    a: Side
    b: Side
    settings: list[Change]
    scores: list[Score]
    words: list[Score]
    flips: list[Flips]
    cost: list[tuple[str, float, float]]


def compare_sides(a: Side, b: Side, lexicon: Sequence[str]) -> Comparison:
    """UserError where the two share no benchmark."""
    shared = [name for name in a.evaluations if name in b.evaluations]
    if not shared:
        raise UserError(
            f"{a.name} and {b.name} share no benchmark: {_listed(a.evaluations)} against {_listed(b.evaluations)}."
        )
    specs = [open_artifact(side.runs[0]).frozen_spec for side in (a, b)]
    return Comparison(
        a,
        b,
        diff(*specs),
        [score for name in shared for score in _scores(a, b, name)],
        [score for name in shared for score in _words(a, b, name, lexicon)],
        [_flips(a, b, name) for name in shared],
        _cost(a, b),
    )


def _scores(a: Side, b: Side, benchmark: str) -> Iterator[Score]:
    one, two = a.measurement(benchmark), b.measurement(benchmark)
    metrics = (SCORE, *((PASS,) if min(one.k, two.k) > 1 else ()), LENGTH, TRUNCATED, DENSITY)
    for family in (ALL, *(f for f in one.families if f in two.families)):
        for metric in metrics if family == ALL else (SCORE,):
            difference = two.difference(one, metric, family)
            yield Score(benchmark, family, metric, one.mean(metric, family), two.mean(metric, family), difference)


def _words(a: Side, b: Side, benchmark: str, lexicon: Sequence[str]) -> Iterator[Score]:
    one, two = a.measurement(benchmark), b.measurement(benchmark)
    for word in lexicon:
        column = counts_column("substring", word)
        if one.mean(column) or two.mean(column):
            yield Score(benchmark, word, column, one.mean(column), two.mean(column), two.difference(one, column))


def _flips(a: Side, b: Side, benchmark: str) -> Flips:
    right = []
    for side in (a, b):
        name = side.names(benchmark, "evaluate_artifact")[0]
        table = completions_of(name, side.at(side.evaluations[benchmark]))
        table = table[table["sample"] == 0]
        right.append(
            {int(row): outcome == "correct" for row, outcome in zip(table["row_id"], table["outcome"], strict=True)}
        )
    one, two = right
    shared = sorted(one.keys() & two.keys())
    return Flips(benchmark, [r for r in shared if one[r] and not two[r]], [r for r in shared if two[r] and not one[r]])


def _cost(a: Side, b: Side) -> list[tuple[str, float, float]]:
    """Per run, averaged over seeds."""
    rows = []
    for what, of in (("tokens sampled in training", _sampled_tokens), ("minutes of training", _minutes)):
        values = [[of(name) for name in side.runs] for side in (a, b)]
        rows.append((what, *(sum(v) / len(v) for v in values)))
    return rows


def _sampled_tokens(train: str) -> float:
    """0 for a base model and for methods that sample nothing."""
    artifact = open_artifact(train)
    on_policy = artifact.frozen_spec["params"].get("on_policy")
    if artifact.stage != "train" or on_policy is None:
        return 0.0
    params = artifact.frozen_spec["params"]
    found = curves(train)
    tokens = found[TOKENS].sum() * params["prompts_per_step"] * on_policy["group_size"]
    if "regenerated_tokens_mean" in found:
        tokens += (found["regenerated"] * found["regenerated_tokens_mean"]).sum()
    return float(tokens)


def _minutes(train: str) -> float:
    spent = 0.0
    for attempt in read_attempts(provenance_path(open_artifact(train).folder)):
        if attempt.get("finished"):
            begun, ended = (datetime.fromisoformat(attempt[name]) for name in ("started", "finished"))
            spent += (ended - begun).total_seconds() / 60
    return spent


# --- shown ------------------------------------------------------------------------------------------------------------


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain data; differences are B minus A."""

    def row(score: Score, label: str) -> dict[str, Any]:
        value, low, high = score.difference
        return {"benchmark": score.benchmark, label: score.family, "metric": score.metric, "a": score.a, "b": score.b,
                "difference": value, "low": _plain(low), "high": _plain(high), "p_value": score.difference.p_value(),
                "over": score.difference.over, "verdict": score.verdict}  # fmt: skip

    return {
        "a": comparison.a.name,
        "b": comparison.b.name,
        "settings": [{"field": c.field, "a": c.existing, "b": c.planned} for c in comparison.settings],
        "scores": [row(score, "family") for score in comparison.scores],
        "words": [row(score, "word") for score in comparison.words],
        "flips": [{"benchmark": f.benchmark, "only_a": f.only_a, "only_b": f.only_b} for f in comparison.flips],
        "cost": [{"what": what, "a": one, "b": two} for what, one, two in comparison.cost],
    }


def comparison_sections(comparison: Comparison) -> list[Section]:
    """What the terminal and the page show."""
    a, b = comparison.a.name, comparison.b.name
    settings = [[text(c.field), text(c.existing), text(c.planned)] for c in comparison.settings]
    scores = [
        [text(s.benchmark), text(s.family), text(_METRICS[s.metric]), *map(num, _values(s)), text(s.verdict)]
        for s in comparison.scores
    ]
    words = [
        [text(s.benchmark), text(s.family), num(number(s.a)), num(number(s.b)), num(signed(s.metric, s.difference)),
         text(s.verdict)]
        for s in sorted(comparison.words, key=lambda s: -abs(s.difference.value))
    ]  # fmt: skip
    flips = [
        [text(f.benchmark), num(len(f.only_a)), num(len(f.only_b)), text(_numbers(f.only_a)), text(_numbers(f.only_b))]
        for f in comparison.flips
    ]
    cost = [[text(what), num(number(one)), num(number(two))] for what, one, two in comparison.cost]
    decided = sum(s.verdict in ("higher", "lower") for s in comparison.scores)
    over = comparison.scores[0].difference.over
    return [
        Section("settings", "Settings that differ", f"{len(settings)} fields of the first training run's spec.",
                [Table(("field", a, b), settings)] if settings else []),
        Section("scores", "Scores", f"{decided} of {len(scores)} differences (B − A) are decided; 95 % intervals over "
                f"{over}, not adjusted for their number.",
                [Table(("benchmark", "family", "metric", a, b, "B − A", "B is"), scores)]),
        Section("words", "Epistemic words per completion", f"{len(words)} words occur.",
                [Table(("benchmark", "word", a, b, "B − A", "B is"), words)] if words else []),
        Section("flips", "Problems that flipped", "First sample, first seed of each side.",
                [Table(("benchmark", "only A right", "only B right", "problems of A", "problems of B"), flips)]),
        Section("cost", "Cost of one run", "Means over the training seeds.", [Table(("what", a, b), cost)]),
    ]  # fmt: skip


def comparison_page(comparison: Comparison, folder: Path) -> str:
    """The sections as a page in a folder, with the training curves of both on one axis."""
    from selfdistill.views.report import ModelPage, render

    figure, title = comparison_figure(comparison), f"{comparison.a.name} and {comparison.b.name}"
    page = ModelPage(title, "", [figure] if figure else [], comparison_sections(comparison))
    root = Path(os.path.relpath(ROOT.parent, folder)).as_posix()
    return render([page], [], SIDE_LOOKS, f"Comparison: {title}", f"{root}/")


def comparison_figure(comparison: Comparison) -> Figure | None:
    """The training curves of both; None where neither samples in training."""
    sides = (comparison.a, comparison.b)
    looks = [replace(look, label=side.name) for look, side in zip(SIDE_LOOKS, sides, strict=True)]
    return curve_figure(
        {look: [curves(run) for run in side.runs] for look, side in zip(looks, sides, strict=True)},
        [run for side in sides for run in side.runs],
    )


def _values(score: Score) -> tuple[str, str, str]:
    if score.metric in NAMES:
        return shown(score.metric, score.a), shown(score.metric, score.b), signed(score.metric, score.difference)
    shares = (f"{100 * value:.1f}\u00a0%" for value in (score.a, score.b))
    return *shares, signed(SCORE, score.difference)


def _numbers(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return ", ".join(map(str, rows[:_LISTED])) + more


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else value
