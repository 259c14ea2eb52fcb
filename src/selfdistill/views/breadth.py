"""How broad the data are that methods were trained on (arXiv 2603.24472, section 6.1): a section of the report.

A row per training set and method: its distinct problems and families, and what the method gains there and elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfdistill.views.measures import LENGTH, SCORE, open_artifact
from selfdistill.views.page import Section, Table, key_cell, method, num, text
from selfdistill.views.study import OUT_OF_DISTRIBUTION, Evaluation, ModelStudy
from selfdistill.views.style import GRPO, SDPO, change, listed, number, signed


def breadth_section(studies: Sequence[ModelStudy], trained_on: dict[str, str]) -> Section | None:
    """None with fewer than two training sets. `trained_on`: experiment -> the artifact that holds its problems."""
    found = [(study, e) for study in studies for e in study.main]
    names = sorted({trained_on[e.experiment] for _, e in found})
    if len(names) < 2:
        return None
    sizes = {name: _size(open_artifact(name).manifest["summary"]) for name in names}
    ordered = sorted(found, key=lambda pair: sizes[trained_on[pair[1].experiment]])
    rows = [_row(study, e, trained_on[e.experiment], sizes) for study, e in ordered]
    header = ("trained on", "problems", "families", "method", "evaluated on", "domain", "accuracy minus base",
              "length over base's", "seeds", "artifacts")  # fmt: skip
    gains = [_gain(study, trained_on, name) for study in studies for name in names]
    lead = " ".join(gain for gain in gains if gain) or "The data sets that methods were trained on, the smallest first."
    note = "Families are the kinds of problems that a data set names; a data set that names none counts as one."
    return Section("breadth", "Data sets by breadth", lead, [Table(header, rows)], [note])


def _size(summary: dict[str, Any]) -> tuple[int, int]:
    """(families, distinct problems)."""
    problems = summary.get("distinct", summary.get("problems", 0))
    return max(len(summary.get("families", {})), 1), problems


def _row(study: ModelStudy, e: Evaluation, name: str, sizes: dict[str, tuple[int, int]]) -> list[Any]:
    families, problems = sizes[name]
    length = e.last().mean(LENGTH) / e.base.mean(LENGTH)
    return [
        text(_slug(name)), num(number(problems) if problems >= 100 else problems), num(families),
        method(study.looks[e.experiment]), text(e.benchmark), text(e.domain), num(signed(SCORE, e.change(SCORE))),
        num(f"{change(100 * (length - 1))}\u00a0%"), num(len(e.seeds)), key_cell(e.names("evaluate_artifact")),
    ]  # fmt: skip


def _gain(study: ModelStudy, trained_on: dict[str, str], name: str) -> str:
    """What GRPO and SDPO do in distribution, for one training set; empty unless both were trained on it."""
    inside = [e for e in study.main if trained_on[e.experiment] == name and e.domain != OUT_OF_DISTRIBUTION]
    by_kind = {e.kind: e for e in reversed(inside) if e.kind in (GRPO, SDPO)}
    if set(by_kind) != {GRPO, SDPO}:
        return ""
    both = [by_kind[GRPO], by_kind[SDPO]]
    parts = [f"{study.looks[e.experiment].label} by {signed(SCORE, e.change(SCORE))}" for e in both]
    return f"Trained on {_slug(name)}, accuracy on {both[0].benchmark} changes under {listed(parts)}."


def _slug(name: str) -> str:
    """`id-4096` of `dataset/id-4096-<key>`."""
    return name.partition("/")[2][:-13]
