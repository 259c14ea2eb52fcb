"""Run one stage: `python -m selfdistill.run.launch STAGE MANIFEST --log FILE --runtime FILE`.

This is what all stages share, so that a stage module is one `main(job)`: the artifact's lock, its seal (a sealed
artifact is not computed again), provenance, the log, signals, and a one-line message for a user's mistake.

Exit codes: 0 done; 2 a user's mistake (a retry cannot help); 75 interrupted, state saved (run it again);
70 no heartbeat; 130 interrupted; 137 out of memory, or killed; 1 anything else, with a traceback.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import shutil
import signal
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.run import warm

# Everything else is imported where it is used, because the client of a warm start must start fast.
if TYPE_CHECKING:
    from types import ModuleType

    from selfdistill.artifacts.store import Artifact
    from selfdistill.run.job import Job, Shard, Tee
    from selfdistill.schema.runtime import Resources


def main(arguments: list[str] | None = None) -> int:
    """Run the stage in this process, or with `--warm` in a fork of a process that has the libraries loaded."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--warm" in arguments and warm.is_possible():
        code = warm.run_forked([a for a in arguments if a != "--warm"], "selfdistill.run.launch")
        if code is not None:
            return code if code >= 0 else _report_death(arguments, -code)
    return run(arguments)


def run(arguments: list[str]) -> int:
    """Run the stage in this process; returns the exit code."""
    from selfdistill.schema.errors import EXIT_USER_ERROR, disk_problem

    options = _parse(arguments)
    gc.disable()
    try:
        with _open_log(options) as tee:
            return _run_and_report(options, tee)
    except OSError as error:  # of the log itself
        problem = disk_problem(error)
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        gc.enable()


def _open_log(options: argparse.Namespace) -> Tee:
    from selfdistill.run.job import Tee

    folder = options.manifest.parent
    history = folder / "log.txt" if folder.is_dir() else None
    return Tee(options.log, f"{options.stage} {folder.name[:-13]}", history)


def _run_and_report(options: argparse.Namespace, tee: Tee) -> int:
    """Run the stage; one line and an exit code for every way that it may end."""
    from selfdistill.artifacts import refusal
    from selfdistill.schema.errors import EXIT_RETRY, EXIT_USER_ERROR, Interrupted, UserError

    folder = options.manifest.parent
    reason = refusal.recall(folder)
    if reason is not None:
        tee.print(f"error: not tried again, because a retry cannot help: {reason}")
        return EXIT_USER_ERROR
    try:
        return _run(options, tee)
    except UserError as error:
        tee.print(f"error: {error}")
        refusal.remember(folder, str(error))
        return EXIT_USER_ERROR
    except Interrupted as error:
        tee.print(f"interrupted: {error}")
        return EXIT_RETRY
    except KeyboardInterrupt:
        tee.print("interrupted: run the same command again to continue.")
        return 128 + signal.SIGINT
    except Exception as error:
        return _report_failure(error, tee)


def _report_failure(error: Exception, tee: Tee) -> int:
    """Print what went wrong; returns the exit code."""
    from selfdistill.schema.errors import EXIT_KILLED, EXIT_USER_ERROR, disk_problem, is_out_of_memory

    if problem := disk_problem(error):
        tee.log(traceback.format_exc())
        tee.print(f"error: {problem}")
        return EXIT_USER_ERROR
    tee.print(traceback.format_exc())
    if not is_out_of_memory(error):
        return 1
    tee.print("error: out of memory. A retry requests more, up to resources.max_mem_mb (config/runtime.yaml).")
    return EXIT_KILLED


def _report_death(arguments: list[str], number: int) -> int:
    """A fork that a signal ended could not say so, nor record it; returns the exit code."""
    from selfdistill.artifacts.lineage import provenance_path
    from selfdistill.artifacts.provenance import record_kill

    options = _parse(arguments)
    with _open_log(options) as tee:
        tee.print(f"error: {signal.Signals(number).name} ended the process. Run the same command again to continue.")
    if number == signal.SIGKILL:
        record_kill(provenance_path(options.manifest.parent, options.shard or ""))
    return 128 + number


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="selfdistill.run.launch", description=__doc__.splitlines()[0])
    parser.add_argument("stage")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--runtime", default="config/runtime.yaml")
    parser.add_argument("--shard", help="sample only this shard of the prompts, such as 2-of-8")
    parser.add_argument("--marker", type=Path, help="with --shard: file that is created when the shard is done")
    parser.add_argument("--warm", action="store_true", help="fork from a process that has the libraries loaded")
    parser.add_argument("--gpus-assigned", action="store_true", help="the scheduler has assigned this job's GPUs")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, tee: Tee) -> int:
    from selfdistill.artifacts.store import Artifact
    from selfdistill.run.job import Shard
    from selfdistill.schema.errors import UserError

    artifact = Artifact.open(options.manifest)
    if artifact.stage != options.stage:
        raise UserError(f"{options.manifest} is an artifact of stage {artifact.stage}, not {options.stage}.")
    shard = Shard.parse(options.shard) if options.shard else Shard()
    with _locked(artifact, tee, shard) as lock:
        artifact = Artifact.open(options.manifest)  # It may have been removed while this job waited.
        if artifact.is_sealed or artifact.restore():
            tee.print("already sealed: nothing to compute.")
            shutil.rmtree(artifact.state, ignore_errors=True)  # A kill after the manifest leaves it.
        else:
            _compute(options, tee, artifact, shard, lock)
        if options.marker is not None:
            options.marker.parent.mkdir(parents=True, exist_ok=True)
            options.marker.touch()
        return 0


def _compute(options: argparse.Namespace, tee: Tee, artifact: Artifact, shard: Shard, lock: int) -> None:
    """Run the stage and seal the artifact; a shard is not sealed. `lock`: descriptor of the lock that is held."""
    from selfdistill.artifacts import refusal
    from selfdistill.artifacts.lineage import base_slug
    from selfdistill.artifacts.provenance import Provenance
    from selfdistill.plan.runtime import load_runtime, merged_settings
    from selfdistill.run.job import Job
    from selfdistill.run.streaming import streaming
    from selfdistill.schema.errors import is_out_of_memory

    config = load_runtime(options.runtime)
    runtime, needs = merged_settings(config, artifact.stage, base_slug(artifact))
    _set_threads(runtime.threads)
    module = importlib.import_module(f"selfdistill.stages.{artifact.stage}")
    # Libraries stay. Looking at them for garbage again and again is a tenth of a short job.
    gc.freeze()
    gc.enable()
    job = Job(artifact, runtime, tee, is_resumable=getattr(module, "RESUMES", False), shard=shard, lock=lock)
    if not job.is_resumable:
        artifact.unseal()
    signal.signal(signal.SIGTERM, lambda _signum, _frame: _stop(job))
    with _gpus(job, needs, are_assigned=options.gpus_assigned):
        provenance = Provenance.start(artifact, runtime, str(shard) if shard.is_partial else "")
        artifact.payload.mkdir(parents=True, exist_ok=True)
        try:
            with streaming(artifact, config.mlflow, tee):
                summary = _run_stage(module, job, needs, options)
            if not shard.is_partial:
                artifact.seal(summary, provenance.will_seal)
                refusal.forget(artifact.folder)
        finally:
            error = sys.exc_info()[1]
            is_oom = error is not None and is_out_of_memory(error)
            provenance.finish(sealed=artifact.is_sealed, out_of_memory=is_oom, notes=job.notes)
    tee.log(f"shard {shard} is done." if shard.is_partial else "sealed.")


def _run_stage(module: ModuleType, job: Job, needs: Resources, options: argparse.Namespace) -> dict[str, Any]:
    """Run the stage in this process, or in the training processes that config/runtime.yaml asks for; its summary."""
    from selfdistill.run.training_processes import run_training_processes

    if hasattr(module, "prepare"):
        module.prepare(job)
    if getattr(module, "DISTRIBUTED", False) and job.runtime.processes * needs.nodes > 1:
        return run_training_processes(job, options.runtime, options.log, needs.nodes)
    return module.main(job)


def _gpus(job: Job, needs: Resources, *, are_assigned: bool) -> AbstractContextManager[Any]:
    """Reserve GPUs for this job, unless a scheduler has assigned them.

    The executor decides that, not SLURM_JOB_ID: with --profile local inside a Slurm allocation all jobs see its GPUs.
    """
    from selfdistill.run.gpus import reserve_gpus, visible_gpus

    only_merges = job.runtime.shards > 1 and not job.shard.is_partial
    if are_assigned or job.runtime.device != "cuda" or not needs.gpus or only_merges or needs.nodes > 1:
        return nullcontext()
    return reserve_gpus(needs.gpus, visible_gpus(), job.tee.print)


def _set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _stop(job: Job) -> None:
    """On SIGTERM a resumable stage saves its state at the next safe point; others exit at once."""
    from selfdistill.schema.errors import Interrupted

    if job.is_resumable:
        job.is_stopped = True
    else:
        raise Interrupted("stopped by SIGTERM; this stage has no state and will start over.")


def _locked(artifact: Artifact, tee: Tee, shard: Shard) -> AbstractContextManager[int]:
    """The lock of the artifact, or of a shard of it: a second job waits until all processes of the first are gone."""
    from selfdistill.artifacts.lock import hold_lock, lock_path

    path = lock_path(artifact.folder, str(shard) if shard.is_partial else "")
    return hold_lock(path, lambda: tee.print(f"waiting: another process is computing {artifact.name}."))


if __name__ == "__main__":
    sys.exit(main())
