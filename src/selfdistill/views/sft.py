"""results/sft/{model}.csv: fine-tuning on completions sampled with and without a solution (arXiv 2603.24472, table 2).

One row per arm (base, unguided, guided) x benchmark x seed at the last evaluated step; seed `all` averages the seeds.
paper_avg_at_k is filled for the paper's own model, DeepSeek-R1-Distill-Qwen-7B, on its own benchmarks.
Other columns as in the ood table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfdistill.views.command import Plan, run
from selfdistill.views.evaluations import ALL_SEEDS, ARTIFACTS, BASE, Evaluation, evaluations
from selfdistill.views.published import SFT, is_papers_model
from selfdistill.views.tables import DIFFERENCES, MEASURES, as_csv, differences, measures

COLUMNS = (
    "model", "arm", "experiment", "seed", "step", "benchmark", "domain", *MEASURES, *DIFFERENCES, "paper_avg_at_k",
    *ARTIFACTS,
)  # fmt: skip
_ORDER = (BASE, "unguided", "guided")


def build(plan: Plan) -> str:
    return as_csv(rows(evaluations(plan["rows"])), COLUMNS)


def rows(found: list[Evaluation]) -> list[dict[str, Any]]:
    """The table's rows, by benchmark, then arm; the base, which the arms share, once per benchmark."""
    by_benchmark: dict[str, list[dict[str, Any]]] = {}
    for evaluation in found:
        known = by_benchmark.setdefault(evaluation.benchmark, [])
        if not known:
            known.append(_row(evaluation, BASE, BASE, 0))
        known += _arm_rows(evaluation)
    return [row for known in by_benchmark.values() for row in sorted(known, key=lambda row: _ORDER.index(row["arm"]))]


def _arm_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    step = evaluation.steps[-1]
    for seed in (*evaluation.seeds, ALL_SEEDS):
        yield _row(evaluation, evaluation.about["arm"], seed, step)


def _row(evaluation: Evaluation, arm: str, seed: int | str, step: int) -> dict[str, Any]:
    measurement = evaluation.measurement(step, seed)
    paper = SFT[arm].get(evaluation.benchmark) if is_papers_model(evaluation.base["train_artifact"]) else None
    return {
        "model": evaluation.about["model"],
        "arm": arm,
        "experiment": evaluation.about["experiment"] if step else BASE,
        "seed": seed,
        "step": step,
        "benchmark": evaluation.benchmark,
        "domain": evaluation.domain,
        **measures(measurement),
        **(differences(measurement, evaluation.base_measurement()) if step else {}),
        "paper_avg_at_k": paper,
        **evaluation.artifacts(step, seed),
    }


if __name__ == "__main__":
    run("sft", build)
