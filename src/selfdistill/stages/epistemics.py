"""Counts of epistemic words in every completion: by substring, as in the paper, and by whole words."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from selfdistill.artifacts.tables import COLUMNS, read_rows, write_table
from selfdistill.epistemic import count, density
from selfdistill.run.job import Job
from selfdistill.schema.stages import EpistemicsSpec

MODES = ("substring", "word")
_KEPT = ("step", "row_id", "sample", "problem_id", "family", "completion_tokens")


def main(job: Job) -> dict[str, Any]:
    words = job.artifact.spec(EpistemicsSpec).words
    rows = read_rows(job.artifact.input("rollouts").payload / "rollouts.parquet", [*_KEPT, "completion"])
    columns: dict[str, list[int]] = {}
    for mode in MODES:
        counts = [count(row["completion"], words, mode) for row in rows]
        columns |= {f"{mode}:{word}": [c[word] for c in counts] for word in words}
        columns[f"{mode}_total"] = [sum(c.values()) for c in counts]
    kept = {name: pa.array([row[name] for row in rows], COLUMNS[name]) for name in _KEPT}
    counted = {name: pa.array(values, pa.int32()) for name, values in columns.items()}
    write_table(job.artifact.payload / "counts.parquet", pa.table(kept | counted))
    return {
        f"step-{step}": _describe(rows, columns["substring_total"], step) for step in sorted({r["step"] for r in rows})
    }


def _describe(rows: list[dict[str, Any]], totals: list[int], step: int) -> dict[str, Any]:
    """The paper's counts at one step, named as in the tables."""
    chosen = [(row["completion_tokens"], total) for row, total in zip(rows, totals, strict=True) if row["step"] == step]
    tokens, total = (sum(values) for values in zip(*chosen, strict=True))
    return {
        "completions": len(chosen),
        "epistemic_count": total / len(chosen),
        "epistemic_density_per_1k_tokens": density(total, tokens),
    }
