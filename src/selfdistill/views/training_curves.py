"""What training wrote step by step: results/curves/{experiment}.csv and the report's training curves.

The columns of the table after `step` are those that the trainer wrote, in alphabetical order; an empty cell was not
written at that step. A step is one batch of rollouts with all its updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from selfdistill.views.csv_table import as_csv
from selfdistill.views.figures import Line, lines
from selfdistill.views.page import Figure, Panel, Section, keys
from selfdistill.views.study import FINAL_STEPS, REWARD, TOKENS, WORDS, ModelStudy, curves, final_values
from selfdistill.views.style import NUMBER, PERCENT, Look, listed, number, whole_percent

_PANELS = ((REWARD, "Training score", PERCENT), (TOKENS, "Length, tokens", NUMBER),
           (WORDS, "Epistemic words per completion", NUMBER))  # fmt: skip


_ABOUT = ("experiment", "seed", "step", "train_artifact")


def build_curves(plan: dict[str, Any]) -> str:
    """results/curves/{experiment}.csv."""
    rows = []
    for entry in plan["rows"]:
        for step, values in curves(entry["train_artifact"]).iterrows():
            about = {
                "experiment": entry["experiment"],
                "seed": entry["seed"],
                "step": step,
                "train_artifact": entry["train_artifact"],
            }
            rows.append(about | {name: float(value) for name, value in values.items()})
    scalars = sorted({name for row in rows for name in row} - set(_ABOUT))
    return as_csv(rows, (*_ABOUT[:-1], *scalars, _ABOUT[-1]))


def curves_section(study: ModelStudy) -> Section | None:
    """Score, length and epistemic words of the training rollouts; None if no method samples in training."""
    tables = {name: [curves(run) for run in runs] for name, runs in study.training.items()}
    tables = {name: found for name, found in tables.items() if all(REWARD in table for table in found)}
    runs = [run for name in tables for run in study.training[name]]
    figure = curve_figure({study.looks[name]: found for name, found in tables.items()}, runs)
    if figure is None:
        return None
    ends = [_ending(study.looks[name].label, study.training[name]) for name in tables]
    lead = f"In the last {FINAL_STEPS} training steps, {listed(ends)}."
    return Section("curves", "During training", lead, [figure])


def curve_figure(tables: Mapping[Look, Sequence[pd.DataFrame]], runs: Sequence[str]) -> Figure | None:
    """Score, length and epistemic words by training step, a line for each look; None where nobody samples."""
    tables = {look: found for look, found in tables.items() if all(REWARD in table for table in found)}
    if not tables:
        return None
    panels = []
    for column, title, scale in _PANELS:
        series = [_line(found, column, look) for look, found in tables.items() if column in found[0]]
        if series:
            panels.append(Panel(title, lines(series, scale, "training step")))
    caption = (
        "Means over the completions sampled in each training step, smoothed over five steps. "
        f"Thick: mean of {_seed_counts(tables)}; thin: each seed. No intervals are shown."
    )
    return Figure(panels, caption, keys(runs), list(tables))


def _seed_counts(tables: Mapping[Look, Sequence[pd.DataFrame]]) -> str:
    """`3 training seeds`, or `1 to 3 training seeds` where methods differ."""
    counts = sorted({len(found) for found in tables.values()})
    shown = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"{shown} training seed{'s' if counts[-1] > 1 else ''}"


def _line(tables: Sequence[pd.DataFrame], column: str, look: Look) -> Line:
    smooth = [table[column].rolling(5, min_periods=1, center=True).mean() for table in tables]
    steps = sorted(set.intersection(*(set(s.index) for s in smooth)))
    mean = np.mean([s.loc[steps].to_numpy() for s in smooth], axis=0)
    faint = [(list(s.index), list(s)) for s in smooth] if len(smooth) > 1 else []
    return Line(look, steps, list(mean), faint=faint)


def _ending(label: str, runs: list[str]) -> str:
    score, tokens = final_values(runs, REWARD), final_values(runs, TOKENS)
    length = "" if tokens is None else f" with {number(tokens.mean())} tokens"
    return f"{label} scores {whole_percent(score.mean())}{length}"
