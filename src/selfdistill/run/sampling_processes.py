"""A job's prompts in shares: sampling processes side by side on one machine.

Each process has its own engine (on GPUs: its own GPUs) and adds part files to the artifact's state; the job itself
then finds everything done and only puts it in order. Cluster jobs share the work in the same way, each through
`python -m selfdistill.run.launch STAGE MANIFEST --shard 2-of-8`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from selfdistill.artifacts.store import Artifact
from selfdistill.plan.settings import load_runtime
from selfdistill.plan.workspace import merged_settings, model_slug
from selfdistill.run.gpus import VISIBLE, gpus_of, visible_gpus
from selfdistill.run.job import Job, Shard, Tee
from selfdistill.run.outcomes import hear, run_stage, tell

_POLL_SECONDS = 0.2


def run_side_by_side(job: Job, runtime_file: str, log: Path) -> None:
    """Do the job's share in `runtime.samplers` processes.

    Raises Interrupted or UserError as the first of them did that did not succeed; RuntimeError when one died without a
    word. What the others have finished is kept.
    """
    count = job.runtime.samplers
    folder = job.artifact.folder / "workers"
    folder.mkdir(exist_ok=True)
    shares = [job.shard.part(index, count) for index in range(count)]
    for share in shares:
        for path in (_stop_file(folder, share), _outcome_file(folder, share)):
            path.unlink(missing_ok=True)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "selfdistill.run.sampling_processes", str(job.artifact.manifest_path), runtime_file]
            + [str(log.with_suffix(f".{share}.log")), str(share)],
            env=_environment(job, index),
        )
        for index, share in enumerate(shares)
    ]
    try:
        while any(process.poll() is None for process in processes):
            if job.stop_requested:
                for share in shares:
                    _stop_file(folder, share).touch()
            time.sleep(_POLL_SECONDS)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
    for share, process in zip(shares, processes, strict=True):
        hear(_outcome_file(folder, share), f"the sampling process {share}", process.returncode)


def _environment(job: Job, index: int) -> dict[str, str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(job.runtime.threads)}
    if job.runtime.device == "cuda":
        own = gpus_of(index, job.runtime.tensor_parallel, visible_gpus())
        environment[VISIBLE] = ",".join(own)
    return environment


def _stop_file(folder: Path, share: Shard) -> Path:
    return folder / f"stop-{share}"


def _outcome_file(folder: Path, share: Shard) -> Path:
    return folder / f"outcome-{share}.json"


def main() -> int:
    """One process: do its share of the stage's work and say how it ended."""
    parser = argparse.ArgumentParser(prog="selfdistill.run.sampling_processes")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runtime")
    parser.add_argument("log", type=Path)
    parser.add_argument("shard", type=Shard.parse)
    options = parser.parse_args()
    artifact = Artifact.open(options.manifest)
    folder = artifact.folder / "workers"
    stop = _stop_file(folder, options.shard)
    # A scheduler may signal every process of a job; each of them then saves what it has.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: stop.touch())
    with Tee(options.log, f"{artifact.stage} {artifact.slug} {options.shard}") as tee:
        runtime, _ = merged_settings(load_runtime(options.runtime), artifact.stage, model_slug(artifact))
        outcome, code = run_stage(Job(artifact, runtime, tee, is_resumable=True, stop_file=stop, shard=options.shard))
    tell(_outcome_file(folder, options.shard), outcome)
    return code


if __name__ == "__main__":
    sys.exit(main())
