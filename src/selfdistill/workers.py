"""Several processes for one training job: started by torchrun, told to stop through a file, heard through a file.

The launching process keeps the artifact's lock, provenance and seal; the workers only run the stage. A file tells them
to stop, since signals do not cross torchrun's own shutdown (which kills after 30 seconds), nor nodes.

    python -m selfdistill.workers MANIFEST RUNTIME_FILE LOG        (inside a worker; torchrun takes --log for its own)
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from selfdistill.files import write_atomically
from selfdistill.job import Job, Tee
from selfdistill.plan.settings import load_runtime
from selfdistill.plan.workspace import merged_settings, model_slug
from selfdistill.schema.errors import EXIT_RETRY, EXIT_USER_ERROR, Interrupted, UserError
from selfdistill.store import Artifact

_STOP, _OUTCOME = "stop", "outcome.json"


def run_in_workers(job: Job, runtime_file: str, log: Path) -> dict[str, Any]:
    """Run the job's stage in `runtime.processes` processes; returns the summary of the first.

    Raises Interrupted and UserError as the stage did; RuntimeError when the workers died without a word.
    """
    folder = job.artifact.folder / "workers"
    folder.mkdir(exist_ok=True)
    for name in (_STOP, _OUTCOME):
        (folder / name).unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.runtime.processes}",
        "-m", "selfdistill.workers", str(job.artifact.manifest_path), runtime_file, str(log),
    ]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(job.runtime.threads)})
    try:
        while process.poll() is None:
            if job.stop_requested and not (folder / _STOP).exists():
                (folder / _STOP).touch()
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return _outcome(folder / _OUTCOME, process.returncode)


def _outcome(path: Path, code: int) -> dict[str, Any]:
    if not path.is_file():
        raise RuntimeError(f"the training processes ended with code {code} and left no outcome; see the log above")
    outcome = json.loads(path.read_text(encoding="utf-8"))
    if "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["summary"]


def main() -> int:
    """One worker: run the stage; the first also reports how it ended."""
    parser = argparse.ArgumentParser(prog="selfdistill.workers")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runtime")
    parser.add_argument("log", type=Path)
    options = parser.parse_args()
    artifact = Artifact.open(options.manifest)
    folder = artifact.folder / "workers"
    rank = int(os.environ["RANK"])
    log = options.log if rank == 0 else options.log.with_suffix(f".rank{rank}.log")
    with Tee(log, f"{artifact.stage} {artifact.slug} rank {rank}") as tee:
        runtime, _ = merged_settings(load_runtime(options.runtime), artifact.stage, model_slug(artifact))
        job = Job(artifact, runtime, tee, is_resumable=True, stop_file=folder / _STOP)
        outcome, code = _run(job)
    if rank == 0:
        write_atomically(folder / _OUTCOME, json.dumps(outcome))
    return code


def _run(job: Job) -> tuple[dict[str, Any], int]:
    try:
        return {"summary": importlib.import_module(f"selfdistill.stages.{job.artifact.stage}").main(job)}, 0
    except Interrupted as error:
        return {"interrupted": str(error)}, EXIT_RETRY
    except UserError as error:
        return {"error": str(error)}, EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
