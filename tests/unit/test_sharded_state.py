"""States of sharded weights are written while training goes on: whole or not there, and never in silence."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import checkpoint

from selfdistill.schema.errors import disk_problem
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import sampling
from selfdistill.training.sharded_state import ShardedStateWriter, _HashingWriter
from training_session import SDPO, Session, make_spec, ranks, run_in_processes, without_times

SPEC = make_spec(SDPO, steps=3, checkpoint_every=3)


def make(folder, **options) -> Session:
    return Session(folder, SPEC, StageRuntime(processes=2, sharding="full", state_every_steps=1), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Session:
    """A run that waits for each of its states."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "selfdistill.training.components.Components.check_saving", lambda components: components.finish_saving()
        )
        session = make(tmp_path_factory.mktemp("whole"))
        assert run_in_processes(session) == [0, 0]
    return session


@pytest.fixture
def before_write(monkeypatch):
    """Set a function of the step and the rank that each thread calls before it writes."""

    def set_to(function):
        write = _HashingWriter.write_data

        def writing(self, plan, planner):
            step = int(self._folder.parent.name.removeprefix(".step-").removesuffix(".partial"))
            function(step, ranks()[0])
            return write(self, plan, planner)

        monkeypatch.setattr(_HashingWriter, "write_data", writing)

    return set_to


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is there by name alone: whatever is done with it fails."""

    def used(*_, **__):
        raise AssertionError("the GPU is used")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", used)
    monkeypatch.setattr(torch.cuda, "current_stream", used)
    return SimpleNamespace(device=torch.device("cuda"), new_cpu_group=lambda: None)


def test_a_state_is_copied_without_pinning_memory(gpu):
    """Two small tensors share a page, and a driver pins a page once."""
    tensors = {"a": torch.arange(3.0), "b": torch.arange(4.0)}
    staged = ShardedStateWriter(gpu)._stager.stage(tensors)
    tensors["a"].zero_()
    assert staged["a"].tolist() == [0.0, 1.0, 2.0]
    assert staged["b"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_thread_that_writes_a_state_uses_no_gpu(tmp_path, gpu):
    digests = {}
    writer = _HashingWriter(tmp_path, digests.update)
    checkpoint.save({"a": torch.arange(3.0)}, storage_writer=writer, no_dist=True)
    found = {"a": torch.zeros(3)}
    checkpoint.load(found, checkpoint_id=tmp_path, no_dist=True)
    assert found["a"].tolist() == [0.0, 1.0, 2.0]
    assert list(digests) == ["__0_0.distcp"]


def test_training_goes_on_while_a_state_is_written_and_ends_the_same(tmp_path, whole, before_write, monkeypatch):
    """Rank 1 writes the state of step 1 only after rank 0 has updated in step 2, with what it kept of step 1."""
    monkeypatch.setattr(sampling, "_KEEP_SECONDS", 0.0)
    seen = tmp_path / "seen"

    def wait(step, rank):
        until = time.monotonic() + 100
        while (step, rank) == (1, 1) and not seen.exists():
            assert time.monotonic() < until, "training waits for the state"
            time.sleep(0.01)

    def on_report(line):
        if ranks()[0] == 0 and line == {"step": 2, "phase": "weights"}:
            kept = sorted(path.name for path in (tmp_path / "state/rollouts").iterdir())
            assert kept == ["step-1", "step-2"]
            assert not (tmp_path / "state/step-1").exists()
            seen.touch()

    before_write(wait)
    session = make(tmp_path, on_report=on_report)
    assert run_in_processes(session) == [0, 0]
    assert seen.exists()
    assert session.weights() == whole.weights()
    assert without_times(session.metrics()) == without_times(whole.metrics())
    assert ["seconds_state" in line for line in session.metrics()] == [False, True, True]
    # The last step has no state, so what it kept is left for the stage to remove.
    found = sorted(str(path.relative_to(tmp_path / "state")) for path in (tmp_path / "state").rglob("step-*"))
    assert found == ["rollouts/step-3", "step-1", "step-2"]


def test_a_run_killed_while_a_state_is_written_goes_on_from_the_one_before(tmp_path, whole, before_write, monkeypatch):
    before_write(lambda step, rank: os.kill(os.getpid(), signal.SIGKILL) if step == 2 else None)
    session = make(tmp_path)
    assert 0 not in run_in_processes(session)
    assert (tmp_path / "state/.step-2.partial").is_dir()
    assert [path.name for path in (tmp_path / "state").glob("step-*")] == ["step-1"]
    monkeypatch.undo()
    assert run_in_processes(session) == [0, 0]
    assert session.weights() == whole.weights()
    assert without_times(session.metrics()) == without_times(whole.metrics())


class Dying(Session):
    """Each rank kills itself after some seconds, if it is still there."""

    after = 0.0

    def run(self):
        timer = threading.Timer(self.after, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
        super().run()


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_the_same(tmp_path, whole):
    seed = int(os.environ.get("SELFDISTILL_KILL_SEED", time.time_ns() % 2**32))
    print(f"SELFDISTILL_KILL_SEED={seed}")
    chance = random.Random(seed)
    started = time.monotonic()
    assert run_in_processes(make(tmp_path / "timed")) == [0, 0]
    seconds = time.monotonic() - started
    hits, run = 0, 0
    while hits < 10:
        session = Dying(tmp_path / f"run-{run}", SPEC, StageRuntime(processes=2, sharding="full", state_every_steps=1))
        session.after = chance.uniform(0, 1.2 * seconds)
        while run_in_processes(session) != [0, 0]:
            hits += 1
            session.after = chance.uniform(0, 1.2 * seconds) if hits < 10 else 1000
        assert session.weights() == whole.weights()
        assert without_times(session.metrics()) == without_times(whole.metrics())
        run += 1


def test_a_full_disk_of_one_rank_stops_all_ranks(tmp_path, before_write):
    class Reporting(Session):
        def run(self):
            try:
                super().run()
            except OSError as error:
                (tmp_path / f"problem-{ranks()[0]}").write_text(str(disk_problem(error)))
                raise

    def fail(step, rank):
        if (step, rank) == (1, 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shards/__1_0.distcp")

    before_write(fail)
    session = Reporting(tmp_path, SPEC, StageRuntime(processes=2, sharding="full", state_every_steps=1))
    assert run_in_processes(session) == [1, 1]
    for rank in range(2):
        assert (
            tmp_path / f"problem-{rank}"
        ).read_text() == "the disk is full (shards/__1_0.distcp). Free space, run again."
    assert not list((tmp_path / "state").glob("step-*"))
    assert len(session.metrics()) < SPEC.steps
