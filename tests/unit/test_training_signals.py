"""SIGTERM to both processes of a training, in each phase of a step: they leave within seconds and nothing is lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import EXIT_RETRY, Interrupted
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.training import TrainingEvaluation
from small_specs import small
from training_session import SDPO, Session, make_spec, processes_of, without_times

pytestmark = pytest.mark.slow

EVALUATION = small(TrainingEvaluation, every_steps=2, samples=2, sampling=Sampling(max_tokens=10), limit=3)
SPEC = make_spec(SDPO, steps=3, prompts_per_step=4, checkpoint_every=2, evaluation=EVALUATION)
#: From the signal to the end of both processes.
SECONDS_TO_LEAVE = 10.0
#: Steps with a line of metrics when a stop came in this phase of the second step.
FINISHED = {
    "start": [], "sampling": [1], "grading": [1], "contexts": [1], "updates": [1], "weights": [1], "evaluation": [1],
    "checkpoint": [1, 2], "state": [1, 2],
}  # fmt: skip


def attempt(session: Session, phase: str | None = None, seconds: float = 600.0) -> list[int]:
    """Exit codes of two processes, which get a SIGTERM in this phase, if any, and then have so many seconds."""
    session.folder.mkdir(exist_ok=True)

    def work(rank: int) -> None:
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))

        def reach(line) -> None:
            if phase and line.get("phase") == phase and line["step"] == 2 and not stopped:
                (session.folder / f"ready-{rank}").touch()
                until = time.monotonic() + 600
                while not stopped and time.monotonic() < until:
                    time.sleep(0.01)

        session.stop_requested, session.on_report = lambda: bool(stopped), reach
        if phase == "start":
            reach({"phase": phase, "step": 2})
        try:
            session.run()
        except Interrupted:
            os._exit(EXIT_RETRY)
        os._exit(0)

    children = processes_of(work, 2)
    if phase is not None:
        wait_for([session.folder / f"ready-{rank}" for rank in range(2)])
        for child in children:
            os.kill(child.pid, signal.SIGTERM)
    until = time.monotonic() + seconds
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
    return [child.exitcode for child in children]


def wait_for(paths) -> None:
    until = time.monotonic() + 600
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, "the phase was not reached"
        time.sleep(0.01)


@pytest.fixture(scope="module", params=["none", "full"])
def whole(request, tmp_path_factory) -> Session:
    """A run that nothing stops."""
    runtime = StageRuntime(processes=2, sharding=request.param, state_every_steps=1)
    session = Session(tmp_path_factory.mktemp(request.param) / "whole", SPEC, runtime)
    assert attempt(session) == [0, 0]
    return session


@pytest.mark.parametrize("phase", FINISHED)
def test_a_sigterm_is_heard_in_every_phase_and_the_resumed_run_ends_in_the_same_bytes(tmp_path, whole, phase):
    session = Session(tmp_path / "run", SPEC, whole.runtime)
    assert attempt(session, phase, SECONDS_TO_LEAVE) == [EXIT_RETRY] * 2
    file = session.folder / "metrics.jsonl"
    assert [line["step"] for line in (session.metrics() if file.exists() else [])] == FINISHED[phase]
    assert attempt(session) == [0, 0]
    assert session.weights() == whole.weights()
    assert without_times(session.metrics()) == without_times(whole.metrics())
