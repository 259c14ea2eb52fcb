"""GPUs of one machine, shared out by locks: none is held twice, and a dead job holds none."""

import os
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from selfdistill.run.gpus import VISIBLE, gpus_of, own_gpus, visible_gpus
from selfdistill.schema.errors import UserError


@pytest.fixture(autouse=True)
def lock_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv(VISIBLE, "4,5,6")


def test_a_job_sees_its_own_gpus_and_afterwards_what_it_saw_before():
    assert visible_gpus() == ["4", "5", "6"]
    with own_gpus(2, visible_gpus(), print) as taken:
        assert taken == ["4", "5"] and os.environ[VISIBLE] == "4,5"
    assert os.environ[VISIBLE] == "4,5,6"


def test_what_one_job_holds_another_does_not_get():
    with own_gpus(2, ["a", "b", "c"], print), own_gpus(1, ["a", "b", "c"], print) as taken:
        assert taken == ["c"]


def test_a_job_waits_until_enough_are_free_and_says_so_once():
    said, got = [], []

    def second():
        with own_gpus(2, ["a", "b", "c"], said.append, poll_seconds=0.05) as taken:
            got.append(taken)

    with own_gpus(2, ["a", "b", "c"], print):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.4)
        assert got == [] and len(said) == 1 and "2 of 3 GPUs" in said[0]
        # It keeps none while it waits.
        with own_gpus(1, ["c"], print):
            pass
    waiting.join(10)
    assert got == [["a", "b"]]


def test_a_killed_job_holds_nothing():
    code = (
        "import sys, time\nfrom selfdistill.run.gpus import own_gpus\n"
        "with own_gpus(1, ['a'], print):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    job.kill()
    job.wait()
    with own_gpus(1, ["a"], pytest.fail) as taken:
        assert taken == ["a"]


def test_more_gpus_than_there_are_is_one_clear_line():
    with pytest.raises(UserError, match="asks for 4 GPUs and sees 3"), own_gpus(4, visible_gpus(), print):
        pass


def test_each_process_of_a_job_gets_its_own_gpus():
    assert [gpus_of(index, 2, ["0", "3", "5", "6"]) for index in range(2)] == [["0", "3"], ["5", "6"]]
    with pytest.raises(UserError, match="more GPUs than the 3"):
        gpus_of(1, 2, ["0", "1", "2"])
