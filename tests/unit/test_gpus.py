"""GPUs of one machine are reserved by locks: none is used twice, and a dead job holds none."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from selfdistill.artifacts.store import Artifact
from selfdistill.run.gpus import VISIBLE, reserve_gpus, visible_gpus
from selfdistill.run.job import Job, Shard, Tee
from selfdistill.run.launch import _gpus
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import Resources, StageRuntime


@pytest.fixture(autouse=True)
def lock_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv(VISIBLE, "4,5,6")


def test_a_job_sees_its_reserve_gpus_and_afterwards_what_it_saw_before():
    assert visible_gpus() == ["4", "5", "6"]
    with reserve_gpus(2, visible_gpus(), print) as taken:
        assert taken == ["4", "5"] and os.environ[VISIBLE] == "4,5"
    assert os.environ[VISIBLE] == "4,5,6"


def test_what_one_job_holds_another_does_not_get():
    with reserve_gpus(2, ["a", "b", "c"], print), reserve_gpus(1, ["a", "b", "c"], print) as taken:
        assert taken == ["c"]


def test_a_job_waits_until_enough_are_free_and_says_so_once():
    said, got = [], []

    def second():
        with reserve_gpus(2, ["a", "b", "c"], said.append, poll_seconds=0.05) as taken:
            got.append(taken)

    with reserve_gpus(2, ["a", "b", "c"], print):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.4)
        assert got == [] and len(said) == 1 and "2 of 3 GPUs" in said[0]
        # It keeps none while it waits.
        with reserve_gpus(1, ["c"], print):
            pass
    waiting.join(10)
    assert got == [["a", "b"]]


def test_a_killed_job_holds_nothing():
    code = (
        "import sys, time\nfrom selfdistill.run.gpus import reserve_gpus\n"
        "with reserve_gpus(1, ['a'], print):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    job.kill()
    job.wait()
    with reserve_gpus(1, ["a"], pytest.fail) as taken:
        assert taken == ["a"]


def test_more_gpus_than_there_are_is_one_clear_line():
    with pytest.raises(UserError, match="needs 4 GPUs and sees 3"), reserve_gpus(4, visible_gpus(), print):
        pass


@contextmanager
def running(folder, gpus, are_assigned=False, **settings):
    """A job while it runs, as launch starts it in a process that sees GPUs 4, 5 and 6; yields the GPUs it then sees."""
    os.environ[VISIBLE] = "4,5,6"
    with Tee(folder / "log", "test") as tee:
        shard = settings.pop("shard", Shard())
        job = Job(Artifact(folder), StageRuntime(device="cuda", **settings), tee, shard=shard)
        with _gpus(job, Resources(gpus=gpus), are_assigned=are_assigned):
            yield visible_gpus()


def test_shards_with_one_gpu_each_divide_the_gpus_of_a_machine_and_the_merging_job_needs_none(tmp_path):
    with ExitStack() as jobs:
        seen = [jobs.enter_context(running(tmp_path, 1, shards=3, shard=Shard(index, 3))) for index in range(3)]
        merging = jobs.enter_context(running(tmp_path, 1, shards=3))
    assert seen == [["4"], ["5"], ["6"]] and merging == ["4", "5", "6"]


def test_jobs_inside_one_slurm_allocation_divide_its_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with running(tmp_path, 1) as first, running(tmp_path, 1) as second:
        assert (first, second) == (["4"], ["5"])
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        with running(tmp_path, 1) as other:
            assert other == ["4"], "GPU 4 of another allocation is another GPU"


def test_two_jobs_that_need_all_gpus_of_an_allocation_run_one_after_the_other(tmp_path, monkeypatch):
    class Waited(Exception):
        pass

    def sleep(_seconds):
        raise Waited

    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr("selfdistill.run.gpus.time.sleep", sleep)
    with running(tmp_path, 3) as first:
        assert first == ["4", "5", "6"]
        with pytest.raises(Waited), running(tmp_path, 3):
            pass


def test_a_job_whose_gpus_the_scheduler_assigned_locks_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with running(tmp_path, 3, True) as first, running(tmp_path, 3, True) as second:
        assert first == second == ["4", "5", "6"]
