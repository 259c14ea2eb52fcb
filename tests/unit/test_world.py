"""What the processes of a training do before they load anything, and while one waits for another."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import accelerate
import pytest
import torch

from selfdistill.files import sha256_file
from selfdistill.generation import loading
from selfdistill.run.watchdog import EXIT_HANG, STACKS, Watchdog
from selfdistill.schema.runtime import StageRuntime
from selfdistill.stages import train as stage
from selfdistill.training import sharded_state, state
from selfdistill.training.distributed import World
from training_session import GRPO, SDPO, SFT, Session, grade, make_spec, run_in_processes

WATCHDOG_SECONDS = 3.0


def watched(session: Session, folder) -> None:
    """Run the session as the stage does, each process with a watchdog of its own."""
    World.of(session.runtime)
    alive = folder / "alive"
    with Watchdog(WATCHDOG_SECONDS, print, folder / "hang.txt", alive) as watchdog:
        job = SimpleNamespace(steps=lambda total, what: lambda line: None)
        session.on_report = stage.step_reporter(job, session.spec.steps, watchdog)
        Session.run(session)


def run_watched(folder, spec, grade_slowly) -> list[int]:
    session = Session(folder, spec, StageRuntime(processes=2))
    session.grade = grade_slowly
    return run_in_processes(SimpleNamespace(run=lambda: watched(session, folder)))


def test_every_process_gives_heartbeats(tmp_path):
    """The run takes longer than the watchdog waits, and no phase of it does."""
    started = time.monotonic()
    Session(tmp_path / "first", make_spec(GRPO, steps=1)).run()  # What is only done once, such as loading libraries.

    def slowly(*arguments):
        time.sleep(0.5)
        return grade(*arguments)

    assert run_watched(tmp_path, make_spec(GRPO, steps=12), slowly) == [0, 0]
    assert time.monotonic() - started > 1.5 * WATCHDOG_SECONDS


def test_a_process_that_waits_for_a_slower_one_is_not_taken_for_hung(tmp_path):
    """Rank 0 samples for longer than the watchdog waits, with heartbeats; rank 1 has nothing to do meanwhile."""
    session = Session(tmp_path, make_spec(GRPO, steps=1, checkpoint_every=1), StageRuntime(processes=2))

    def run():
        world = World.of(session.runtime)
        with Watchdog(WATCHDOG_SECONDS, print, tmp_path / "hang.txt", tmp_path / "alive") as watchdog:
            for _ in range(10 if world.is_main else 0):
                time.sleep(0.5)
                watchdog.heartbeat("sampling")
            world.barrier()

    assert run_in_processes(SimpleNamespace(run=run)) == [0, 0]


def test_a_hang_ends_every_process(tmp_path):
    def run():
        world = World.of(StageRuntime(processes=2))
        with Watchdog(1.0, print, tmp_path / "hang.txt", tmp_path / "alive") as watchdog:
            watchdog.heartbeat("sampling")
            if world.is_main:
                time.sleep(100)
            world.barrier()

    started = time.monotonic()
    codes = run_in_processes(SimpleNamespace(run=run))
    # The second may hear from the first that it is gone before its own watchdog does.
    assert EXIT_HANG in codes and 0 not in codes
    assert time.monotonic() - started < 60


def test_a_process_that_waits_in_vain_for_the_others_is_watched(tmp_path, monkeypatch):
    """One of two never comes: the other has its watchdog before it waits, hours by NCCL's count."""
    for name in ("model_folder", "load_tokenizer"):
        monkeypatch.setattr(stage, name, lambda *_: None)

    def run():
        if os.environ["RANK"] == "1":
            os._exit(0)
        artifact = SimpleNamespace(spec=lambda _: make_spec(GRPO), input=lambda _: None, folder=tmp_path)
        runtime = StageRuntime(processes=2, watchdog_seconds=2)
        stage.main(SimpleNamespace(artifact=artifact, runtime=runtime, tee=SimpleNamespace(print=print)))

    (tmp_path / "workers").mkdir()
    assert run_in_processes(SimpleNamespace(run=run)) == [EXIT_HANG, 0]
    assert "distributed.py" in (tmp_path / STACKS).read_text()


def test_a_process_has_its_gpu_before_anything_is_loaded(monkeypatch, tmp_path):
    """The second of two processes: its model goes to the second GPU, which is made the current one first."""
    calls = []

    class State:
        process_index, num_processes, device = 1, 2, torch.device("cuda", 1)

        def __init__(self, cpu, timeout):
            calls.append(f"current device {self.device}")

    class Loaded(Exception):
        pass

    def load(folder, device):
        calls.append(f"load on {device}")
        raise Loaded

    monkeypatch.setattr(accelerate, "PartialState", State)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(stage, "load_model", load)
    monkeypatch.setattr(stage, "model_folder", lambda artifact: None)
    monkeypatch.setattr(stage, "load_tokenizer", lambda folder: None)
    monkeypatch.setattr(stage, "check_grader", lambda grader: None)
    artifact = SimpleNamespace(spec=lambda kind: make_spec(SDPO), input=lambda role: None, folder=tmp_path)
    job = SimpleNamespace(
        artifact=artifact, runtime=StageRuntime(device="cuda", processes=2), tee=SimpleNamespace(print=print)
    )
    with pytest.raises(Loaded):
        stage.main(job)
    assert calls == ["current device cuda:1", "load on cuda:1"]


def test_a_model_is_loaded_on_the_gpu_of_its_process(monkeypatch):
    placed = []

    class Model:
        def eval(self):
            return self

        def to(self, device):
            placed.append(device)

    import transformers

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: Model())
    loading.load_model(None, torch.device("cuda", 3))
    assert placed == [torch.device("cuda", 3)]


def test_processes_wait_for_each_other_for_hours(monkeypatch):
    """NCCL's own limit of ten minutes is shorter than a rank waits for the slowest sampler."""
    given = {}

    def state(**options):
        given.update(options)
        return SimpleNamespace(process_index=0, num_processes=2, device=torch.device("cpu"))

    monkeypatch.setattr(accelerate, "PartialState", state)
    monkeypatch.setenv("WORLD_SIZE", "2")
    World.of(StageRuntime(processes=2))
    assert given["timeout"] >= timedelta(hours=2)
    World.of(StageRuntime(processes=2, collective_timeout_seconds=60))
    assert given["timeout"] == timedelta(seconds=60)


def test_the_process_group_itself_gets_the_limit(tmp_path):
    def run():
        World.of(StageRuntime(processes=2, collective_timeout_seconds=1234))
        group = torch.distributed.distributed_c10d._get_default_group()
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=1234)

    assert run_in_processes(SimpleNamespace(run=run)) == [0, 0]


def test_every_rank_hashes_its_own_part_of_a_state_and_its_share_when_reading(tmp_path, monkeypatch):
    """A state of 98 GB takes one process minutes to hash; meanwhile the others would wait."""
    session = Session(
        tmp_path, make_spec(SFT, steps=3), StageRuntime(processes=2, sharding="full", state_every_steps=2)
    )
    session.stop_requested = lambda: (tmp_path / "state/step-2").is_dir()

    def run():
        def hashed(path):
            with (tmp_path / f"rank-{os.environ['RANK']}").open("a") as file:
                file.write(path.name + "\n")
            return sha256_file(path)

        monkeypatch.setattr(state, "sha256_file", hashed)
        monkeypatch.setattr(sharded_state, "sha256_file", hashed)
        session.run()

    def hashed_by(rank):
        path = tmp_path / f"rank-{rank}"
        return path.read_text().split() if path.exists() else []

    run_in_processes(SimpleNamespace(run=run))
    assert sorted(hashed_by(0)) == [".metadata", "__0_0.distcp", "progress.json"]
    assert hashed_by(1) == ["__1_0.distcp"]
    for rank in range(2):
        (tmp_path / f"rank-{rank}").unlink()
    session.stop_requested = lambda: (tmp_path / "rank-0").exists()
    run_in_processes(SimpleNamespace(run=run))
    read = [hashed_by(rank)[:2] for rank in range(2)]
    assert sorted(read[0] + read[1]) == [".metadata", "__0_0.distcp", "__1_0.distcp", "progress.json"]


def test_a_shard_that_one_rank_finds_damaged_is_skipped_by_all(tmp_path, caplog):
    session = Session(
        tmp_path, make_spec(SFT, steps=4), StageRuntime(processes=2, sharding="full", state_every_steps=1)
    )
    session.stop_requested = lambda: (tmp_path / "state/step-2").is_dir()
    assert run_in_processes(session) == [1, 1]
    newest = max((tmp_path / "state").iterdir())
    shard = newest / "shards" / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    session.stop_requested = lambda: False
    assert run_in_processes(session) == [0, 0]
    assert len(session.metrics()) == 4


def test_an_engine_that_hangs_while_it_starts_is_watched(tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def start(*_):
        assert any(thread.name == "watchdog" for thread in threading.enumerate())
        raise Reached

    for name in ("model_folder", "load_model", "load_tokenizer"):
        monkeypatch.setattr(stage, name, lambda *_: None)
    monkeypatch.setattr(stage, "make_training_sampler", start)
    artifact = SimpleNamespace(spec=lambda _: make_spec(GRPO), input=lambda _: None, folder=tmp_path)
    with pytest.raises(Reached):
        stage.main(SimpleNamespace(artifact=artifact, runtime=StageRuntime(), tee=SimpleNamespace(print=print)))
