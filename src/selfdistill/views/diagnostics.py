"""Where the loss of distillation lies: results/diagnostics/{model}.csv and the report's section.

One row per experiment, seed, step, benchmark and part of the completions. `cut` is a way to divide their tokens: by
`class` (epistemic words, the first thought word, numbers, others), `quarter` or `position`; its parts share the loss
among them. The cut `completions` has one part, with what belongs to whole completions. Shares and means are ratios of
sums over all tokens; intervals are over training seeds and problems. Columns are described in docs/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selfdistill.diagnostics import CLASSES, distinct_answers
from selfdistill.seeds import Runs, Uncertain, mean
from selfdistill.statistics import pass_at_k
from selfdistill.views.csv_table import as_csv
from selfdistill.views.measures import open_artifact, read_table
from selfdistill.views.page import Cell, Section, Table, key_cell, method, num, text
from selfdistill.views.study import ALL_SEEDS, BASE, ModelStudy, Row
from selfdistill.views.style import BASE_LOOK, Look, listed, number, percent

COMPLETIONS = "completions"
_MEANS = ("loss", "kl", "gap", "pmi", "logit_gradient")
_SHARES = ("share_of_tokens", "share_of_loss", "share_of_logit_gradient")
_WHOLE = ("fork_rate", "forks_per_completion", "loop_rate", "distinct_answers", "pass_at_k", "branch_viability")
DIAGNOSTICS_COLUMNS = (
    "experiment", "seed", "step", "benchmark", "cut", "value", "completions", "tokens", *_SHARES,
    "share_of_loss_low", "share_of_loss_high", *_MEANS, "gradient_norm", *_WHOLE, "evaluate_artifact",
    "diagnostics_artifact",
)  # fmt: skip


def build_diagnostics(plan: dict[str, Any]) -> str:
    """results/diagnostics/{model}.csv."""
    return as_csv([row for group in _groups(plan["rows"]) for row in _rows(group)], DIAGNOSTICS_COLUMNS)


def _groups(rows: Iterable[Row]) -> list[list[Row]]:
    """The plan's rows of each experiment and benchmark: the base and the seeds."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["experiment"], row["benchmark"]), []).append(row)
    return list(found.values())


def _rows(group: list[Row]) -> Iterator[dict[str, Any]]:
    base = [row for row in group if row["seed"] is None]
    trained = [row for row in group if row["seed"] is not None]
    yield from _of(BASE, base, [0])
    steps = sorted(_table(trained[0], "completions")["step"].unique())
    for row in trained:
        yield from _of(row["seed"], [row], steps)
    yield from _of(ALL_SEEDS, trained, steps)


def _of(seed: int | str, rows: list[Row], steps: Iterable[int]) -> Iterator[dict[str, Any]]:
    for step in map(int, steps):
        about = {
            "experiment": rows[0]["experiment"],
            "seed": seed,
            "step": step,
            "benchmark": rows[0]["benchmark"],
            **{role: ";".join(row[role] for row in rows) for role in ("evaluate_artifact", "diagnostics_artifact")},
        }
        tokens, completions, gradients = (
            [_at(_table(row, name), step) for row in rows] for name in ("tokens", "completions", "gradients")
        )
        yield (
            about | whole(completions) | {"cut": COMPLETIONS, "value": "all", "gradient_norm": _norm(gradients, "all")}
        )
        for cut in dict.fromkeys(tokens[0]["cut"]):
            parts = [table[table["cut"] == cut] for table in tokens]
            for value in _order(cut, parts):
                norm = {"gradient_norm": _norm(gradients, value)} if cut == "class" else {}
                yield about | part(parts, value) | norm | {"cut": cut, "value": value}


def _table(row: Row, name: str) -> pd.DataFrame:
    return read_table(open_artifact(row["diagnostics_artifact"]).payload / f"{name}.parquet")


def _at(table: pd.DataFrame, step: int) -> pd.DataFrame:
    return table[table["step"] == step] if len(table) else table


def _norm(gradients: list[pd.DataFrame], value: str) -> float | None:
    """Mean over seeds; None where gradients were not asked for."""
    found = [float(table.loc[table["value"] == value, "norm"].iloc[0]) for table in gradients if len(table)]
    return float(np.mean(found)) if found else None


def _order(cut: str, parts: list[pd.DataFrame]) -> list[str]:
    found = {value for table in parts for value in table["value"]}
    return [value for value in CLASSES if value in found] if cut == "class" else sorted(found)


def part(tables: list[pd.DataFrame], value: str) -> dict[str, Any]:
    """What one part of the tokens says, over all seeds. `tables`: one per seed, the rows of one cut."""
    own = [table[table["value"] == value] for table in tables]
    sums = pd.concat(own)[["tokens", *_MEANS]].sum()
    everything = pd.concat(tables)[["tokens", *_MEANS]].sum()
    share, low, high = loss_share(tables, value)
    return {
        "completions": len(pd.concat(own)),
        "tokens": int(sums["tokens"]),
        "share_of_tokens": _ratio(sums["tokens"], everything["tokens"]),
        "share_of_loss": share,
        "share_of_loss_low": low,
        "share_of_loss_high": high,
        "share_of_logit_gradient": _ratio(sums["logit_gradient"], everything["logit_gradient"]),
        **{name: _ratio(sums[name], sums["tokens"]) for name in _MEANS},
    }


def _ratio(top: float, bottom: float) -> float | None:
    return float(top / bottom) if bottom else None


def loss_share(tables: list[pd.DataFrame], value: str) -> Uncertain:
    """Share of the loss in one part, with its interval over seeds and problems.

    Problems enter a ratio by their linearised values, as in `views.measures`; those without tokens in a seed count 0.
    """
    problems = sorted(set().union(*(table["row_id"] for table in tables)))
    values = []
    for table in tables:
        total = table.groupby("row_id")["loss"].sum().reindex(problems, fill_value=0.0).to_numpy()
        own = (
            table[table["value"] == value].groupby("row_id")["loss"].sum().reindex(problems, fill_value=0.0).to_numpy()
        )
        values.append(_linearised(own, total))
    return mean(Runs.of(values, is_trained=len(tables) > 1, bounds=(0.0, 1.0)))


def _linearised(top_P: NDArray[np.float64], bottom_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values whose mean is sum(top) / sum(bottom)."""
    if not bottom_P.sum():
        return np.zeros_like(bottom_P)
    ratio = top_P.sum() / bottom_P.sum()
    return ratio + (top_P - ratio * bottom_P) / bottom_P.mean()


def whole(tables: list[pd.DataFrame]) -> dict[str, Any]:
    """What belongs to whole completions; one table per seed."""
    together = pd.concat(tables)
    shown = together[together["has_context"]]
    samples = [group for table in tables for _, group in table.groupby("row_id")]
    k = len(samples[0])
    correct_PK = np.array([(group["reward"] > 0.5).to_numpy(dtype=float) for group in samples])
    branches = together["branch_reward"].dropna() if "branch_reward" in together else pd.Series(dtype=float)
    return {
        "completions": len(together),
        "tokens": int(together["tokens"].sum()),
        "fork_rate": _ratio(shown["undecided_forks"].sum(), shown["forks"].sum()),
        "forks_per_completion": _ratio(shown["forks"].sum(), len(shown)),
        "loop_rate": float(together["is_looping"].mean()),
        "distinct_answers": float(np.mean([distinct_answers(list(group["answer"])) for group in samples])),
        "pass_at_k": float(pass_at_k(correct_PK, k).mean()),
        "branch_viability": float(branches.mean()) if len(branches) else None,
    }


def diagnostics_section(study: ModelStudy) -> Section | None:
    """Share of the loss by class of token, and what became of forks; None without diagnostics."""
    if not study.diagnostics:
        return None
    header = ("method", "benchmark", *(f"loss: {name}" for name in CLASSES), "loss: first two tokens", "loss per token",
              "fork rate", "ends in a loop", "other branch is right", "artifacts")  # fmt: skip
    rows: list[list[Cell]] = []
    leads: list[str] = []
    seen: set[str] = set()
    for group in _groups(study.diagnostics):
        table = list(_rows(group))
        name = group[0]["experiment"]
        last = max(row["step"] for row in table)
        if group[0]["benchmark"] not in seen:
            seen.add(group[0]["benchmark"])
            rows.append(_cells(BASE_LOOK, [row for row in table if row["seed"] == BASE]))
        found = [row for row in table if row["seed"] == ALL_SEEDS and row["step"] == last]
        rows.append(_cells(study.looks[name], found))
        shares = {row["value"]: row["share_of_loss"] for row in found if row["cut"] == "class"}
        most = max(shares, key=lambda value: shares[value] or 0.0)
        leads.append(f"{study.looks[name].label} on {group[0]['benchmark']}: {percent(shares[most])} in class {most}")
    notes = (
        "Loss: the divergence between the checkpoint and the base model that has read a solution, on the checkpoint's "
        "own completions. A class of tokens also has a norm of its gradient over all weights, in the table as CSV.",
        "Fork rate: of the positions at which the checkpoint is undecided, the share at which the teacher is, too.",
    )
    return Section("diagnostics", "Where the loss lies", f"Most of the loss left: {listed(leads)}.",
                   [Table(header, rows)], notes)  # fmt: skip


def _cells(look: Look, rows: list[dict[str, Any]]) -> list[Cell]:
    by_part = {(row["cut"], row["value"]): row for row in rows}
    everything = by_part[COMPLETIONS, "all"]
    classes = [by_part.get(("class", name), {}).get("share_of_loss") for name in CLASSES]
    first = sum(by_part.get(("position", place), {}).get("share_of_loss") or 0.0 for place in "01")
    classes_of = [row for row in rows if row["cut"] == "class"]
    loss = sum(row["loss"] * row["tokens"] for row in classes_of) / sum(row["tokens"] for row in classes_of)
    shares = [percent(value) if value is not None else "–" for value in (*classes, first)]
    rates = [everything[name] for name in ("fork_rate", "loop_rate", "branch_viability")]
    cells = (*shares, number(loss), *(percent(rate) if rate is not None else "–" for rate in rates))
    names = everything["diagnostics_artifact"].split(";")
    return [method(look), text(everything["benchmark"]), *map(num, cells), key_cell(names)]
