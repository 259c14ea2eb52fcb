"""Retries: a job that ran out of memory requests more of it, and no other job does.

Snakemake counts attempts, and does not know why one failed. A job that notices that its memory ran out records it in
provenance.json; what killed a job on a cluster, Slurm knows.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from selfdistill.artifacts.lineage import provenance_path, read_attempts
from selfdistill.artifacts.refusal import current_run
from selfdistill.schema.runtime import Resources

_ANSWER_SECONDS = 60


def with_memory_for_retry(needs: Resources, folder: Path, shard: str = "") -> Resources:
    """The resources of an artifact's next attempt in this run of Snakemake.

    mem_mb is added once for every earlier attempt that ran out of memory, up to `max_mem_mb`.
    """
    wanted = needs.mem_mb * (1 + _out_of_memory_ends(folder, shard))
    limit = max(needs.mem_mb, needs.max_mem_mb or 2 * needs.mem_mb)
    return needs.model_copy(update={"mem_mb": min(wanted, limit)})


def _out_of_memory_ends(folder: Path, shard: str) -> int:
    """How many attempts of this run (of a shard, or of the whole artifact) ran out of memory."""
    run = current_run()
    failed = [
        attempt
        for attempt in read_attempts(provenance_path(folder, shard))
        if run and attempt.get("run") == run and not attempt["sealed"]
    ]
    return sum(
        attempt["out_of_memory"] or (attempt["slurm_job"] is not None and slurm_killed_for_memory(attempt["slurm_job"]))
        for attempt in failed
    )


@cache
def slurm_killed_for_memory(job: str) -> bool:
    """Whether Slurm ended a job, or a step of it, because its memory ran out; False if Slurm does not know."""
    questions = (
        ("scontrol", "show", "job", job, "--oneliner"),
        ("sacct", "--noheader", "--parsable2", "--format=State", f"--jobs={job}"),
    )
    return any("OUT_OF_MEMORY" in _output_of(question) for question in questions)


def _output_of(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
