"""A job that is killed takes its processes with it, and the next attempt waits until they are gone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from family_study import METHODS, Study
from selfdistill.artifacts.lineage import last_attempt
from selfdistill.artifacts.lock import hold_lock, is_locked
from selfdistill.artifacts.store import Artifact
from selfdistill.run import training_processes
from selfdistill.run.training_processes import read_outcome
from selfdistill.run.watchdog import EXIT_HANG
from selfdistill.schema.errors import EXIT_KILLED, UserError

STEPS = 12
SEED = int(os.environ.get("SELFDISTILL_KILL_SEED", time.time_ns() % 2**32))
#: Seconds after which no process of a killed job may be left.
ORPHANS_LIVE = 10


def start(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until_gone(pid: int, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


CHILD = """
import sys, time
from selfdistill.parent import die_with
die_with(int(sys.argv[1]))
print("asked", flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}, str(os.getpid())], pass_fds=[int(a) for a in sys.argv[1:]])
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_dies_with_its_parent() -> None:
    parent = start(PARENT)
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "asked\n"
    parent.kill()
    assert wait_until_gone(child)


def test_a_child_that_asks_after_its_parents_death_dies_at_once() -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    child = start(CHILD, gone.pid)
    assert child.wait(30) == 128 + signal.SIGKILL
    assert child.stdout.read() == ""


SLEEPER = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"], pass_fds=[int(sys.argv[1])])
print(child.pid, flush=True)
child.wait()
"""


def test_a_lock_is_held_until_the_last_child_that_inherited_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold_lock(path) as descriptor:
        parent = start(SLEEPER, descriptor, pass_fds=[descriptor])
        child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert is_locked(path)
    os.kill(child, signal.SIGKILL)
    waits: list[str] = []
    with hold_lock(path, lambda: waits.append("waited")):
        assert not is_alive(child)
    assert not is_locked(path)


def test_a_lock_file_that_is_removed_while_a_job_waits_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    first = hold_lock(path)
    first.__enter__()

    def remove() -> None:
        path.unlink()
        first.__exit__(None, None, None)

    with hold_lock(path, remove):
        assert is_locked(path)


def test_a_folder_in_the_place_of_a_lock_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match="is a folder, but must be a file"), hold_lock(tmp_path / ".lock"):
        pass


def test_an_attempt_does_not_take_the_outcome_of_another(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path)
    earlier = training_processes._attempt_folder(artifact)
    training_processes.write_outcome(earlier / "outcome.json", {"summary": {"from": "the earlier attempt"}})
    now = training_processes._attempt_folder(artifact)
    assert now != earlier and not earlier.exists()
    with pytest.raises(RuntimeError, match="no outcome"):
        read_outcome(now / "outcome.json", 0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"), "qwen3", None)


class Training:
    """A training of the study that real launchers run; results of one that nothing disturbed."""

    def __init__(self, study: Study, **settings: object) -> None:
        self.study = study
        self.node = study.train(METHODS["grpo"], steps=STEPS)
        self.artifact = study.freeze(self.node)
        settings = {"threads": 1, "state_every_steps": 1, **settings}
        study.runtime.write_text(json.dumps({"defaults": {"settings": settings}}))
        self.artifact.unseal()
        started = time.monotonic()
        assert self.launch().wait(900) == 0, self.log()
        self.seconds = time.monotonic() - started
        self.expected = self.results()

    def launch(self) -> subprocess.Popen[bytes]:
        command = ["train", str(self.artifact.manifest_path), "--log", str(self.study.root / "logs/train.log")]
        with (self.study.root / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "selfdistill.run.launch", *command, "--runtime", str(self.study.runtime)],
                stdout=output, stderr=output,
            )  # fmt: skip

    def results(self) -> tuple[dict[str, str], list[dict]]:
        """Digests of the payload, and the metrics that do not depend on the machine."""
        files = {name: entry["sha256"] for name, entry in Artifact.open(self.artifact.folder).manifest["files"].items()}
        files.pop("metrics.jsonl")
        lines = [json.loads(line) for line in self.artifact.metrics.read_text().splitlines()]
        times = ("seconds", "tokens_per_second", "peak_memory")
        return files, [{k: v for k, v in line.items() if not k.startswith(times)} for line in lines]

    def log(self) -> str:
        return (self.study.root / "output.txt").read_text()[-3000:]

    def kill(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Kill the launcher alone; returns the processes that it leaves."""
        left = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        return left

    def check(self) -> None:
        files, metrics = self.results()
        assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
        assert metrics == self.expected[1]
        assert files == self.expected[0]


@pytest.mark.slow
def test_a_rerun_right_after_the_kill_of_a_launcher_makes_the_same_bytes(study: Study) -> None:
    training = Training(study, processes=2)
    training.artifact.unseal()
    process = training.launch()
    while not (training.artifact.state / "step-3").is_dir():
        assert process.poll() is None, training.log()
        time.sleep(0.01)
    left = training.kill(process)
    assert len(left) >= 3, "torchrun and two ranks"
    rerun = training.launch()
    assert not psutil.wait_procs(left, timeout=ORPHANS_LIVE)[1]
    assert rerun.wait(900) == 0, training.log()
    training.check()
    assert not list((training.artifact.folder / "workers").glob("attempt-*"))


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, EXIT_KILLED), (signal.SIGSTOP, EXIT_HANG)])
def test_a_training_ends_as_the_first_of_its_processes(study: Study, sent: signal.Signals, code: int) -> None:
    """One that was killed for its memory makes the retry request more; one that hangs does not."""
    training = Training(study, processes=2, watchdog_seconds=15)
    training.artifact.unseal()
    process = training.launch()
    while not (training.artifact.state / "step-3").is_dir():
        assert process.poll() is None, training.log()
        time.sleep(0.01)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if p.environ().get("RANK") == "1"]
    os.kill(ranks[0].pid, sent)
    assert process.wait(120) == code, training.log()
    assert last_attempt(training.artifact.folder)["out_of_memory"] == (sent == signal.SIGKILL)
    assert training.launch().wait(900) == 0, training.log()
    training.check()


@pytest.mark.attack
def test_a_storm_of_kills_leaves_the_same_bytes_and_no_orphans(study: Study) -> None:
    print(f"SELFDISTILL_KILL_SEED={SEED}")
    chance = random.Random(SEED)
    training, kills = Training(study, processes=2), 20
    training.artifact.unseal()
    left: list[psutil.Process] = []
    while kills:
        process = training.launch()
        started = time.monotonic()
        assert not psutil.wait_procs(left, timeout=ORPHANS_LIVE)[1], "orphans are left"
        left = []
        try:
            after = chance.uniform(0, training.seconds)
            assert process.wait(max(0.0, started + after - time.monotonic())) == 0, training.log()
            training.check()
            training.artifact.unseal()
        except subprocess.TimeoutExpired:
            left = training.kill(process)
            kills -= 1
    assert training.launch().wait(900) == 0, training.log()
    training.check()


JUDGE = """
import os, time
def judge(completion, answer):
    with open("judge.pid", "w") as file:
        print(os.getpid(), file=file)
    time.sleep(600)
"""
JOB = """
import threading
from selfdistill.grading.pool import WorkerPool
pool = WorkerPool(1, ("selfdistill.grading.function_worker", "slow_judge:judge"))
work = threading.Thread(target=pool.compare, args=([("a", "b")], 1000.0))
work.start()
work.join()
"""


def test_graders_end_with_a_killed_job_in_the_middle_of_a_call(tmp_path: Path) -> None:
    (tmp_path / "slow_judge.py").write_text(JUDGE)
    source = str(Path(training_processes.__file__).parents[2])
    job = start(JOB, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(tmp_path)])})
    noted, end = tmp_path / "judge.pid", time.monotonic() + 120
    while not (noted.is_file() and noted.read_text()) and time.monotonic() < end and job.poll() is None:
        time.sleep(0.05)
    judge = int(noted.read_text())
    job.kill()
    job.wait()
    try:
        assert wait_until_gone(judge, ORPHANS_LIVE)
    finally:
        if is_alive(judge):
            os.kill(judge, signal.SIGKILL)
