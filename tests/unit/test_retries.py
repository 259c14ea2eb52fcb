"""Retries: more memory after a job ran out of it, up to a limit; the same memory after any other end."""

from __future__ import annotations

import os
import signal
import stat
import sys
import types
from pathlib import Path

import pytest

from selfdistill.artifacts import refusal
from selfdistill.artifacts.lineage import provenance_path, read_attempts
from selfdistill.artifacts.store import Artifact, freeze, make_frozen_spec
from selfdistill.files import key_of
from selfdistill.plan import retries
from selfdistill.plan.site import Site
from selfdistill.plan.workspace import Workspace
from selfdistill.run import launch, warm
from selfdistill.schema.errors import Interrupted

SITE = Site(slurm_account="none", slurm_partition="none")


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """A planned artifact of stage sample whose jobs request 1,000 MB, in a run of Snakemake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(refusal.RUN_VARIABLE, "")
    refusal.begin_run()
    retries.slurm_killed_for_memory.cache_clear()
    (tmp_path / "config").mkdir()
    limit(1000)
    spec = make_frozen_spec("sample", {"distinct": 8, "repeats": 1, "seed": 0}, {})
    folder = tmp_path / "results/artifacts/sample" / f"x-{key_of(spec)}"
    freeze(folder, spec)
    return Artifact.open(folder)


def limit(mem_mb, **more):
    lines = "".join(f", {name}: {value}" for name, value in more.items())
    Path("config/runtime.yaml").write_text(f"defaults: {{resources: {{mem_mb: {mem_mb}{lines}}}}}\n")


def end(artifact, monkeypatch, error, *arguments):
    """A job whose stage raises; its exit code."""

    def main(_job):
        raise error

    module = types.ModuleType("selfdistill.stages.sample")
    module.main = main
    monkeypatch.setitem(sys.modules, "selfdistill.stages.sample", module)
    return launch.main(["sample", str(artifact.manifest_path), "--log", "logs/x.log", *arguments])


def memory(artifact, attempt, shard=""):
    return Workspace({}).resources("sample", artifact.folder.name, attempt, SITE, shard)["mem_mb"]


@pytest.mark.parametrize(
    "error", [Interrupted("state saved"), ZeroDivisionError("a fault"), RuntimeError("CUDA out of memory")]
)
def test_a_retry_after_another_end_requests_the_same_memory(artifact, monkeypatch, error):
    end(artifact, monkeypatch, error)
    end(artifact, monkeypatch, error)
    assert memory(artifact, attempt=3) == 1000


def test_a_refused_submission_leaves_no_attempt_and_no_more_memory(artifact):
    assert memory(artifact, attempt=3) == 1000


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_retry_after_an_out_of_memory_end_requests_more_up_to_the_limit(artifact, monkeypatch, capsys, error):
    assert end(artifact, monkeypatch, error) == 137
    assert "error: out of memory" in capsys.readouterr().err
    assert memory(artifact, attempt=1) == 1000
    assert memory(artifact, attempt=2) == 2000
    end(artifact, monkeypatch, error)
    assert memory(artifact, attempt=3) == 2000, "twice mem_mb, if config/runtime.yaml says nothing else"
    limit(1000, max_mem_mb=2500)
    assert memory(artifact, attempt=3) == 2500
    limit(1000, max_mem_mb=9000)
    assert memory(artifact, attempt=3) == 3000


def test_another_run_of_snakemake_starts_with_the_configured_memory(artifact, monkeypatch):
    end(artifact, monkeypatch, MemoryError())
    refusal.begin_run()
    assert memory(artifact, attempt=2) == 1000


def test_shards_have_attempts_of_their_own(artifact, monkeypatch):
    end(artifact, monkeypatch, MemoryError(), "--shard", "2-of-3")
    assert memory(artifact, 2, shard="2-of-3") == 2000
    assert memory(artifact, 2, shard="1-of-3") == memory(artifact, 2) == 1000


def test_a_fork_that_was_killed_is_recorded_by_its_client(artifact, monkeypatch):
    """A job killed by SIGKILL records nothing; the client of the warm start sees how it ended."""

    def killed(arguments, _module):
        job = os.fork()
        if job == 0:
            end_by_kill(arguments)
        return os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])

    def end_by_kill(arguments):
        module = types.ModuleType("selfdistill.stages.sample")
        module.main = lambda _job: os.kill(os.getpid(), signal.SIGKILL)
        sys.modules["selfdistill.stages.sample"] = module
        launch.run(arguments)
        os._exit(0)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(warm, "run_forked", killed)
    assert launch.main(["sample", str(artifact.manifest_path), "--log", "logs/x.log", "--warm"]) == 137
    (attempt,) = read_attempts(provenance_path(artifact.folder))
    assert attempt["out_of_memory"] and attempt["finished"]
    assert memory(artifact, attempt=2) == 2000


@pytest.mark.parametrize(("command", "answer"), [
    ("scontrol", "JobId=17 JobName=x JobState=OUT_OF_MEMORY Reason=OutOfMemory"),
    ("sacct", "FAILED\nOUT_OF_MEMORY"),
])  # fmt: skip
def test_slurm_is_asked_why_a_job_was_killed(artifact, monkeypatch, tmp_path, command, answer):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    end(artifact, monkeypatch, ZeroDivisionError("killed children leave a traceback in the launcher"))
    assert memory(artifact, attempt=2) == 1000
    retries.slurm_killed_for_memory.cache_clear()
    program = tmp_path / "bin" / command
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncase \"$*\" in *17*) printf '%s\\n' '{answer}';; esac\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert memory(artifact, attempt=2) == 2000


def test_killed_training_processes_ran_out_of_memory(tmp_path):
    from selfdistill.run.training_processes import read_outcome

    with pytest.raises(MemoryError):
        read_outcome(tmp_path / "outcome.json", -9)
    with pytest.raises(RuntimeError, match="exited with code 1"):
        read_outcome(tmp_path / "outcome.json", 1)
    (tmp_path / "running-1").touch()  # torchrun itself ends with 1 when one of its processes was killed.
    with pytest.raises(MemoryError, match="rank 1 ended without a word"):
        read_outcome(tmp_path / "outcome.json", 1)
