"""Several processes for one training job: on one node started by torchrun or accelerate, on several by srun.

The launching process keeps the artifact's lock, provenance and seal; the workers only run the stage. A file tells them
to stop, since signals do not cross torchrun's own shutdown (which kills after 30 seconds), nor nodes; a file says how
they ended.

    python -m selfdistill.run.training_processes MANIFEST RUNTIME_FILE LOG

This is what each worker runs; LOG has no flag, since torchrun has a --log of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfdistill.artifacts.store import Artifact
from selfdistill.plan.settings import load_runtime
from selfdistill.plan.workspace import merged_settings, model_slug
from selfdistill.run.job import Job, Tee
from selfdistill.run.outcomes import hear, run_stage, tell
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime

_STOP, _OUTCOME = "stop", "outcome.json"
_SLURM_KEPT = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_CONF")


def run_in_workers(job: Job, runtime_file: str, log: Path, nodes: int = 1) -> dict[str, Any]:
    """Run the job's stage in `runtime.processes` processes on each node; returns the summary of the first.

    Raises Interrupted and UserError as the stage did; RuntimeError when the workers died without a word.
    """
    folder = job.artifact.folder / "workers"
    folder.mkdir(exist_ok=True)
    for name in (_STOP, _OUTCOME):
        (folder / name).unlink(missing_ok=True)
    worker = ["-m", "selfdistill.run.training_processes", str(job.artifact.manifest_path), runtime_file, str(log)]
    with _across_nodes(nodes, job.runtime) if nodes > 1 else _on_one_node(job.runtime) as (launcher, environment):
        process = subprocess.Popen([*launcher, *worker], env=environment, preexec_fn=_ignore_sigterm)
        try:
            while process.poll() is None:
                if job.stop_requested and not (folder / _STOP).exists():
                    (folder / _STOP).touch()
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
    return hear(folder / _OUTCOME, "the training processes", process.returncode)


def _ignore_sigterm() -> None:
    """Slurm signals every process of a job; a launcher that heard it would kill the workers while they save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _on_one_node(runtime: StageRuntime) -> Iterator[tuple[list[str], dict[str, str]]]:
    """torchrun, or accelerate where a file says so. Both take a port that is free, so jobs cannot collide."""
    if runtime.accelerate_config is None:
        module = ["torch.distributed.run", "--standalone", f"--nproc-per-node={runtime.processes}"]
    else:
        if not Path(runtime.accelerate_config).is_file():
            raise UserError(f"config/runtime.yaml: accelerate_config: there is no file {runtime.accelerate_config}.")
        module = [
            "accelerate.commands.launch", f"--config_file={runtime.accelerate_config}",
            f"--num_processes={runtime.processes}", "--main_process_port=0",
        ]  # fmt: skip
    # SIGTERM is for the workers: a launcher that heard it would end them while they save.
    yield (
        [sys.executable, "-m", *module],
        os.environ | {"OMP_NUM_THREADS": str(runtime.threads), "PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"},
    )


@contextmanager
def _across_nodes(nodes: int, runtime: StageRuntime) -> Iterator[tuple[list[str], dict[str, str]]]:
    """srun starts a task for each process, as torchrun would; Slurm's own variables say which one it is.

    The rendezvous is a store that this process holds open on a port the system chose, so jobs that share a node
    cannot collide. `--overlap`: the step shares the cores, memory and GPUs of the step that this process runs in.
    """
    from torch.distributed import TCPStore

    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(f"config/runtime.yaml: nodes: {nodes}, but this is not a Slurm job. Use --profile slurm.")
    host = socket.gethostname()
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    launcher = [
        "srun", f"--nodes={nodes}", f"--ntasks={nodes * runtime.processes}", f"--ntasks-per-node={runtime.processes}",
        "--distribution=block", "--overlap", "--kill-on-bad-exit=1", "--cpu-bind=none", sys.executable,
    ]  # fmt: skip
    # Variables of the step this process runs in would limit the new one to its one task on one node.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SRUN_")) or k in _SLURM_KEPT}
    yield (
        launcher,
        inherited
        | {
            "OMP_NUM_THREADS": str(runtime.threads),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(store.port),
            # The store is there already: every worker is its client (what torchrun tells its workers, too).
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        },
    )


def _take_rank_from_slurm() -> None:
    """In a task that srun started: the variables that torch and accelerate read."""
    if "RANK" in os.environ:
        return
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
    os.environ |= {name: os.environ[source] for name, source in names.items()}
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["SLURM_NTASKS_PER_NODE"]


def main() -> int:
    """One worker: run the stage; the first also reports how it ended."""
    parser = argparse.ArgumentParser(prog="selfdistill.run.training_processes")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runtime")
    parser.add_argument("log", type=Path)
    options = parser.parse_args()
    _take_rank_from_slurm()
    artifact = Artifact.open(options.manifest)
    folder = artifact.folder / "workers"
    rank = int(os.environ["RANK"])
    log = options.log if rank == 0 else options.log.with_suffix(f".rank{rank}.log")
    with Tee(log, f"{artifact.stage} {artifact.slug} rank {rank}") as tee:
        runtime, _ = merged_settings(load_runtime(options.runtime), artifact.stage, model_slug(artifact))
        job = Job(artifact, runtime, tee, is_resumable=True, stop_file=folder / _STOP)
        signal.signal(signal.SIGTERM, lambda _signum, _frame: setattr(job, "is_stopped", True))
        outcome, code = run_stage(job)
    if rank == 0 or "error" in outcome:
        tell(folder / _OUTCOME, outcome)
    return code


if __name__ == "__main__":
    sys.exit(main())
