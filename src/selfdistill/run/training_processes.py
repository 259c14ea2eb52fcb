"""Several processes for one training job, started by torchrun or accelerate on one node and by srun on several.

The launching process holds the artifact's lock, provenance and seal; the training processes only run the stage. It asks
them to stop through a file, because signals do not reach other nodes and torchrun kills 30 seconds after one. They
report their outcome in another file, because exceptions do not cross processes. Both files lie in a folder of this
attempt, so no attempt takes those of another.

On one node the training processes end with the launching process, however that ends, and their standard input is the
lock: torchrun closes all other descriptors. So the next attempt waits until the last of them is gone. On several nodes
Slurm ends them with the job.

    python -m selfdistill.run.training_processes MANIFEST RUNTIME_FILE LOG ATTEMPT LAUNCHER

This is the command of each training process: ATTEMPT is the folder of this attempt, LAUNCHER a process id. LOG has no
flag because torchrun has its own --log.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfdistill.artifacts.lineage import base_slug
from selfdistill.artifacts.store import Artifact
from selfdistill.files import write_atomically
from selfdistill.parent import die_with
from selfdistill.plan.runtime import load_runtime, merged_settings
from selfdistill.run.job import Job, Tee
from selfdistill.run.watchdog import EXIT_HANG, STACKS
from selfdistill.schema.errors import (
    EXIT_KILLED,
    EXIT_USER_ERROR,
    Interrupted,
    UserError,
    disk_problem,
    is_out_of_memory,
)
from selfdistill.schema.runtime import StageRuntime

_STOP, _OUTCOME = "stop", "outcome.json"
#: File of each process from its start until it ends or is told to: what is left of it after a kill.
_RUNNING = "running-{}"
_SLURM_KEPT = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_CONF")


def run_training_processes(job: Job, runtime_file: str, log: Path, nodes: int = 1) -> dict[str, Any]:
    """Run the job's stage in `runtime.processes` processes on each node; returns the summary of rank 0.

    Raises Interrupted and UserError as the stage did; what `read_outcome` raises when the processes died without an
    outcome; SystemExit with the code of a hang.
    """
    folder = _attempt_folder(job.artifact)
    hangs = _size(job.artifact.folder / STACKS)
    files = [str(job.artifact.manifest_path), runtime_file, str(log), str(folder)]
    launcher_pid = os.getpid()
    command = ["-m", "selfdistill.run.training_processes", *files, str(launcher_pid)]
    with (
        _across_nodes(nodes, job.runtime, runtime_file) if nodes > 1 else _on_one_node(job.runtime, runtime_file) as (
            launcher,
            environment,
        )
    ):
        process = subprocess.Popen(
            [*launcher, *command], env=environment, stdin=job.lock, preexec_fn=lambda: _prepare_launcher(launcher_pid)
        )
        try:
            while process.poll() is None:
                if job.stop_requested and not (folder / _STOP).exists():
                    (folder / _STOP).touch()
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
    if _size(job.artifact.folder / STACKS) > hangs and not (folder / _OUTCOME).exists():
        sys.exit(EXIT_HANG)
    summary = read_outcome(folder / _OUTCOME, process.returncode)
    shutil.rmtree(folder)
    return summary


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt_folder(artifact: Artifact) -> Path:
    """A new folder for the files of this attempt; those of earlier attempts are removed."""
    workers = artifact.folder / "workers"
    workers.mkdir(exist_ok=True)
    for earlier in workers.glob("attempt-*"):
        shutil.rmtree(earlier)
    folder = workers / f"attempt-{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


def run_stage(job: Job) -> tuple[dict[str, Any], int]:
    """Run the job's stage; returns its outcome and the exit code.

    The exit code of an interruption is 0: all processes exit together, and on another code the launcher would kill
    those that are still saving.
    """
    try:
        return {"summary": importlib.import_module(f"selfdistill.stages.{job.artifact.stage}").main(job)}, 0
    except Interrupted as error:
        return {"interrupted": str(error)}, 0
    except UserError as error:
        return {"error": str(error)}, EXIT_USER_ERROR
    except Exception as error:
        if problem := disk_problem(error):
            return {"error": problem}, EXIT_USER_ERROR
        if is_out_of_memory(error):
            return {"out_of_memory": str(error)}, EXIT_KILLED
        raise


def write_outcome(path: Path, outcome: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(outcome))


def read_outcome(path: Path, exit_code: int) -> dict[str, Any]:
    """The summary of a stage that ran in other processes.

    Raises Interrupted and UserError as the stage did; MemoryError if one of them, or their launcher, was killed;
    RuntimeError if they left no outcome.
    """
    killed = sorted(path.parent.glob(_RUNNING.format("*")))
    if not path.is_file() and (killed or exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL)):
        who = " and ".join(f"rank {file.name.rpartition('-')[2]}" for file in killed) or "the training processes"
        raise MemoryError(f"{who} ended without a word, as after a SIGKILL; see the log above")
    if not path.is_file():
        raise RuntimeError(f"the training processes exited with code {exit_code} and no outcome; see the log above")
    outcome = json.loads(path.read_text(encoding="utf-8"))
    if "out_of_memory" in outcome:
        raise MemoryError(outcome["out_of_memory"])
    if "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["summary"]


def _prepare_launcher(parent: int) -> None:
    """Slurm signals every process of a job; on SIGTERM a launcher would kill the training processes while they save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with(parent)


@contextmanager
def _on_one_node(runtime: StageRuntime, runtime_file: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """torchrun, or accelerate with the configured file. Both choose a free port, so jobs cannot collide."""
    if runtime.accelerate_config is None:
        module = ["torch.distributed.run", "--standalone", f"--nproc-per-node={runtime.processes}"]
    else:
        if not Path(runtime.accelerate_config).is_file():
            raise UserError(f"{runtime_file}: accelerate_config: {runtime.accelerate_config} does not exist.")
        module = [
            "accelerate.commands.launch", f"--config_file={runtime.accelerate_config}",
            f"--num_processes={runtime.processes}", "--main_process_port=0",
        ]  # fmt: skip
    # torchrun would kill the training processes on SIGTERM while they save.
    yield (
        [sys.executable, "-m", *module],
        os.environ | {"OMP_NUM_THREADS": str(runtime.threads), "PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"},
    )


@contextmanager
def _across_nodes(nodes: int, runtime: StageRuntime, runtime_file: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """srun starts a task for each process, as torchrun would; Slurm's variables give each its rank.

    The rendezvous is a store in this process, on a port that the system chose, so jobs that share a node cannot
    collide. `--overlap`: the step shares the cores, memory and GPUs of the step that this process runs in.
    """
    from torch.distributed import TCPStore

    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            f"{runtime_file}: nodes: {nodes}, but this is not a Slurm job. Use --profile slurm, or set nodes: 1."
        )
    host = socket.gethostname()
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    launcher = [
        "srun", f"--nodes={nodes}", f"--ntasks={nodes * runtime.processes}", f"--ntasks-per-node={runtime.processes}",
        "--distribution=block", "--overlap", "--kill-on-bad-exit=1", "--cpu-bind=none", sys.executable,
    ]  # fmt: skip
    # Variables of the current step would limit the new step to one task on one node.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SRUN_")) or k in _SLURM_KEPT}
    yield (
        launcher,
        inherited
        | {
            "OMP_NUM_THREADS": str(runtime.threads),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(store.port),
            # The store exists already, so every training process is a client of it (as under torchrun).
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        },
    )


def _take_rank_from_slurm() -> None:
    """Set the variables that torch and accelerate read, in a task that srun started."""
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
    os.environ |= {name: os.environ[source] for name, source in names.items()}
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["SLURM_NTASKS_PER_NODE"]


def main() -> int:
    """One training process: run the stage; rank 0, and any rank with an error, writes the outcome."""
    parser = argparse.ArgumentParser(prog="selfdistill.run.training_processes")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runtime")
    parser.add_argument("log", type=Path)
    parser.add_argument("attempt", type=Path)
    parser.add_argument("launcher", type=int)
    options = parser.parse_args()
    if "RANK" in os.environ:
        die_with(options.launcher)
    else:
        _take_rank_from_slurm()
    artifact = Artifact.open(options.manifest)
    rank = int(os.environ["RANK"])
    log = options.log if rank == 0 else options.log.with_suffix(f".rank{rank}.log")
    with Tee(log, f"{artifact.stage} {artifact.slug} rank {rank}") as tee:
        runtime, _ = merged_settings(load_runtime(options.runtime), artifact.stage, base_slug(artifact))
        job = Job(artifact, runtime, tee, is_resumable=True, stop_file=options.attempt / _STOP)
        running = options.attempt / _RUNNING.format(rank)
        running.touch()

        def stop(_signum: int, _frame: Any) -> None:
            job.is_stopped = True
            running.unlink(missing_ok=True)  # A launcher tells the others when one has died, and kills them later.

        signal.signal(signal.SIGTERM, stop)
        try:
            outcome, code = run_stage(job)
        finally:
            running.unlink(missing_ok=True)
    if rank == 0 or outcome.keys() & {"error", "out_of_memory"}:
        write_outcome(options.attempt / _OUTCOME, outcome)
    return code


if __name__ == "__main__":
    sys.exit(main())
