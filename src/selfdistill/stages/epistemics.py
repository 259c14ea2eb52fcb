"""Counts of epistemic words in every completion: by substring, as in the paper, and by whole words.

Completions are read a few at a time: 88,000 of them are gigabytes of text, their counts a few megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from selfdistill.artifacts.tables import COLUMNS, read_batches, write_table
from selfdistill.epistemic import count_many, density
from selfdistill.run.job import Job
from selfdistill.schema.stages import EpistemicsSpec

MODES = ("substring", "word")
_KEPT = ("step", "row_id", "sample", "problem_id", "family", "completion_tokens")
_READ = (*_KEPT, "completion")


#: Completions that are in memory at a time; one of 20,000 tokens has about 80 kB.
_ROWS = 128


def main(job: Job) -> dict[str, Any]:
    words = job.artifact.spec(EpistemicsSpec).words
    rollouts = job.artifact.input("rollouts").payload / "rollouts.parquet"
    table = pa.concat_tables(
        [_counted(batch, words) for batch in read_batches(rollouts, _READ, _ROWS)] or [_empty(words)]
    )
    # One piece, which is written in the same pages however it was read.
    write_table(job.artifact.payload / "counts.parquet", table.combine_chunks())
    steps = table.select(["step", "completion_tokens", "substring_total"]).to_pylist()
    return {f"step-{step}": _describe(steps, step) for step in sorted({row["step"] for row in steps})}


def _counted(batch: pa.RecordBatch, words: Sequence[str]) -> pa.Table:
    """Counts of each word by both rules, and their sums, beside what identifies the completions."""
    columns: dict[str, list[int]] = {}
    texts = batch.column("completion").to_pylist()
    for mode in MODES:
        counts = count_many(texts, words, mode)
        columns |= {f"{mode}:{word}": counts[word] for word in words}
        columns[f"{mode}_total"] = [sum(row) for row in zip(*counts.values(), strict=True)]
    kept = {name: batch.column(name).cast(COLUMNS[name]) for name in _KEPT}
    return pa.table(kept | {name: pa.array(values, pa.int32()) for name, values in columns.items()})


def _empty(words: Sequence[str]) -> pa.Table:
    return _counted(pa.RecordBatch.from_pylist([], pa.schema([(name, COLUMNS[name]) for name in _READ])), words)


def _describe(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """The paper's counts at one step, named as in the tables."""
    chosen = [(row["completion_tokens"], row["substring_total"]) for row in rows if row["step"] == step]
    tokens, total = (sum(values) for values in zip(*chosen, strict=True))
    return {
        "completions": len(chosen),
        "epistemic_count": total / len(chosen),
        "epistemic_density_per_1k_tokens": density(total, tokens),
    }
