"""Killed, stopped and damaged runs end in the same bytes as one that nothing interrupted."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from power_cut import Disk
from selfdistill.schema.errors import Interrupted, UserError
from selfdistill.schema.methods import Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.distributed import World
from selfdistill.training.state import NewState, Progress, newest_state
from training_session import (
    GRPO,
    SDPO,
    SFT,
    Session,
    make_spec,
    without_times,
)

SNAPSHOT = SDPO.model_copy(update={"teacher": Teacher(kind="snapshot", every=2)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights and metrics of runs that nothing interrupted."""
    results = {}
    for name, method in (("grpo", GRPO), ("sdpo", SDPO), ("snapshot", SNAPSHOT), ("sft", SFT)):
        session = Session(tmp_path_factory.mktemp(name), make_spec(method))
        session.run()
        results[name] = session
    return results


@pytest.mark.parametrize("name", ["grpo", "sdpo", "snapshot", "sft"])
@pytest.mark.parametrize(("step", "phase"), [(1, "updates"), (3, "updates"), (2, "checkpoint"), (3, "state")])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path, whole, name, step, phase):
    """The child kills itself (SIGKILL) in the middle of a phase; the same call then goes on to the end."""
    session = Session(tmp_path, whole[name].spec, StageRuntime(state_every_steps=2 if phase == "updates" else 1))

    def die():
        session.on_report = lambda line: (
            os.kill(os.getpid(), signal.SIGKILL) if line.get("phase") == phase and line["step"] == step else None
        )
        session.run()

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    session.run()
    assert session.weights() == whole[name].weights()
    assert without_times(session.metrics()) == without_times(whole[name].metrics())


@pytest.mark.parametrize(
    ("name", "stop_at"),
    [("grpo", "grading"), ("sdpo", "grading"), ("grpo", "updates"), ("sdpo", "updates"), ("sft", "updates")],
)
def test_a_stopped_run_ends_in_the_same_bytes(tmp_path, whole, name, stop_at):
    """Stopped after sampling its rollouts are kept and used; stopped during the updates the step begins again."""
    session = Session(tmp_path, whole[name].spec, StageRuntime(state_every_steps=100))
    stopped = set()

    def stop_requested():
        line = session.reports[-1]
        phase = line.get("phase", "end")
        if phase == "updates" and line["step"] in stopped:
            return False
        if phase == "updates" and phase == stop_at:
            stopped.add(line["step"])
        return phase in (stop_at, "end", "checkpoint")

    session.stop_requested = stop_requested
    stops = 0
    while stops < 20:
        try:
            summary = session.run()
            break
        except Interrupted:
            stops += 1
    assert stops >= 3
    assert summary.resumed_from == 3
    assert session.weights() == whole[name].weights()
    assert without_times(session.metrics()) == without_times(whole[name].metrics())
    if stop_at == "grading":
        sampled = [line["step"] for line in session.reports if line.get("phase") == "grading"]
        assert sampled == [1, 2, 3, 4]


def test_a_run_stopped_while_it_samples_leaves_at_once(tmp_path, whole):
    session = Session(tmp_path, whole["grpo"].spec, StageRuntime(state_every_steps=100))
    session.stop_requested = lambda: session.reports[-1] == {"step": 3, "phase": "sampling"}
    with pytest.raises(Interrupted):
        session.run()
    assert {"step": 3, "phase": "grading"} not in session.reports
    session.stop_requested = lambda: False
    assert session.run().resumed_from == 2
    assert session.weights() == whole["grpo"].weights()


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, whole, damage, caplog):
    session = Session(tmp_path, whole["sdpo"].spec)
    session.stop_requested = lambda: session.reports[-1]["step"] == 3 and "loss" in session.reports[-1]
    with pytest.raises(Interrupted):
        session.run()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-2", "step-3"]
    file = tmp_path / "state" / "step-3" / "tensors.pt"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    session.stop_requested = lambda: False
    assert session.run().resumed_from == 2
    assert "using the one before it" in caplog.text
    assert session.weights() == whole["sdpo"].weights()


def test_states_that_are_all_damaged_are_an_error(tmp_path):
    state = NewState(tmp_path, Progress(step=1), World("cpu"))
    (state.partial / "x").write_text("x")
    state.complete()
    (tmp_path / "step-1" / "progress.json").write_text("{}")
    with pytest.raises(UserError, match="no intact resume state"):
        newest_state(tmp_path, World("cpu"))


def test_no_state_means_a_fresh_start(tmp_path):
    assert newest_state(tmp_path, World("cpu")) is None


def test_what_a_state_does_not_write_again_is_on_disk_before_it(tmp_path, monkeypatch):
    session = Session(tmp_path, make_spec(GRPO), StageRuntime(state_every_steps=1))
    disk, named = Disk(monkeypatch), []

    def before_rename(target):
        if target.parent.name == "state":
            assert disk.lost(tmp_path / "metrics.jsonl", *(tmp_path / "checkpoints").glob("step-*")) == []
            named.append(target.name)

    disk.before_rename = before_rename
    session.run()
    assert named == ["step-1", "step-2", "step-3"]
    assert disk.lost(tmp_path / "state" / "step-3", tmp_path / "checkpoints") == []
