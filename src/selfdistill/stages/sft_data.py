"""SFT data: correct completions with and without a solution in context, of the same problems (paper, section 4).

Problems with a correct completion of both kinds are kept, one completion of each, so that the two arms differ only in
how their completions were sampled. Both arms have the prompt without a solution.
"""

from __future__ import annotations

from typing import Any

from selfdistill.artifacts.store import Artifact
from selfdistill.artifacts.tables import SFT, read_rows, write_rows
from selfdistill.contexts import SUCCESS_THRESHOLD
from selfdistill.run.job import Job, in_words
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import SftDataSpec

_NEEDED = ["problem_id", "row_id", "completion", "completion_ids", "completion_tokens", "reward", "stop_reason"]


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(SftDataSpec)
    arms = {arm: first_correct(job.artifact.input(arm)) for arm in ("unguided", "guided")}
    prompts = {
        row["problem_id"]: row["prompt_ids"]
        for row in read_rows(job.artifact.input("prompts").payload / "prompts.parquet", ["problem_id", "prompt_ids"])
    }
    solved = [name for name in prompts if all(name in found for found in arms.values())]
    if not solved:
        raise UserError("no problem has a correct completion of both kinds: sample more completions, or more problems.")
    paired = within_solve_rates(solved, solve_rates(job.artifact.input("unguided")), spec)[: spec.limit]
    rows = [
        {**found[name], "arm": arm, "problem_id": name, "prompt_ids": prompts[name]}
        for arm, found in arms.items()
        for name in paired
    ]
    write_rows(job.artifact.payload / "sft.parquet", rows, SFT)
    summary: dict[str, Any] = {"pairs": len(paired), "solved_both_ways": len(solved), "problems": len(prompts)}
    for arm, found in arms.items():
        summary[f"{arm}_solved"] = len(found)
        summary[f"{arm}_mean_tokens"] = sum(found[name]["completion_tokens"] for name in paired) / len(paired)
    job.tee.print(in_words(summary))
    return summary


def first_correct(rollouts: Artifact) -> dict[str, dict[str, Any]]:
    """The first correct completion of each problem that ended by itself."""
    found: dict[str, dict[str, Any]] = {}
    for row in read_rows(rollouts.payload / "rollouts.parquet", _NEEDED):
        if row["reward"] >= SUCCESS_THRESHOLD and row["stop_reason"] == "eos":
            found.setdefault(row["problem_id"], row)
    return found


def solve_rates(rollouts: Artifact) -> dict[str, float]:
    """Share of correct completions of each problem."""
    rewards: dict[str, list[float]] = {}
    for row in read_rows(rollouts.payload / "rollouts.parquet", ["problem_id", "reward"]):
        rewards.setdefault(row["problem_id"], []).append(row["reward"] >= SUCCESS_THRESHOLD)
    return {name: sum(values) / len(values) for name, values in rewards.items()}


def within_solve_rates(names: list[str], rates: dict[str, float], spec: SftDataSpec) -> list[str]:
    """The problems whose solve rate is between the bounds of the spec. UserError where there is none."""
    least, most = spec.min_solve_rate or 0.0, 1.0 if spec.max_solve_rate is None else spec.max_solve_rate
    kept = [name for name in names if least <= rates[name] <= most]
    if not kept:
        raise UserError(
            f"none of {len(names)} problems solved both ways has a solve rate between {least:g} and {most:g}: widen "
            "sft.min_solve_rate and sft.max_solve_rate."
        )
    return kept
