"""Work is pulled from a queue by the ranks that are free, and what is finished is kept."""

from __future__ import annotations

import heapq
import json
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from torch.distributed import TCPStore

from selfdistill.generation import Completion, Sampler
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.rollouts import Prompt, Rollout
from selfdistill.schema.errors import Interrupted
from selfdistill.schema.runtime import StageRuntime
from selfdistill.stages.shared.kept_groups import GroupFiles
from selfdistill.training import sampling
from selfdistill.training.distributed import World
from selfdistill.training.sampling import portions
from training_session import (
    GRPO,
    SDPO,
    Session,
    Verdict,
    grade,
    make_prompts,
    make_spec,
    run_in_processes,
    without_times,
)

#: The paper's batch of 256 prompts.
GROUPS, RANKS = 256, 4
#: Seconds of each group: a log-normal, as lengths of reasoning are; 10 s at the median.
SECONDS = 10 * np.random.default_rng(1).lognormal(0, 0.6, GROUPS)


class OneByOne(Sampler):
    """One group at a time; its completion is its prompt and its seed."""

    def portion(self, count, ranks):
        return 1

    def stream(self, prompts, seeds, sampling, *, done=frozenset(), on_progress=None):
        for index, prompt in enumerate(prompts):
            yield index, [Completion([*prompt, seed], [0.0, 0.0], "eos") for seed in seeds[index]]


def simulate(take, monkeypatch) -> tuple[float, list[list[int]]]:
    """Seconds that a rank waits for the slowest one, on average, and what was sampled; `take(world)` gives it places.

    The ranks share a real queue. Time is simulated: the rank that is free first goes on, and a group takes SECONDS.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    prompts, seeds = [[place] for place in range(GROUPS)], [[7 * place] for place in range(GROUPS)]
    free: list[tuple[float, int]] = []
    streams, found, ends = [], {}, [0.0] * RANKS
    for rank in range(RANKS):
        world = World("cpu")
        world.rank, world.size = rank, RANKS
        streams.append(OneByOne().stream_portions(take(world), prompts, seeds, None))
        heapq.heappush(free, (0.0, rank))
    while free:
        now, rank = heapq.heappop(free)
        place, completions = next(streams[rank], (None, None))
        if place is None:
            ends[rank] = now
        else:
            found[place] = completions[0].token_ids
            heapq.heappush(free, (now + SECONDS[place], rank))
    return sum(max(ends) - end for end in ends) / RANKS, [found[place] for place in range(GROUPS)]


def test_ranks_that_pull_their_work_wait_less_for_each_other(monkeypatch):
    dealt, from_shares = simulate(lambda world: iter([world.select(range(GROUPS))]), monkeypatch)
    pulled, from_queue = simulate(lambda world: portions(OneByOne(), GROUPS, world), monkeypatch)
    print(f"waiting: {dealt:.0f} s of fixed shares, {pulled:.0f} s from a queue ({1 - pulled / dealt:.0%} less)")
    assert from_queue == from_shares == [[place, 7 * place] for place in range(GROUPS)]
    assert pulled < 0.4 * dealt


def test_one_rank_takes_everything_at_once():
    """One batch, as without a queue: what is sampled together decides the rounding."""
    assert list(portions(TorchSampler(None, []), 5, World("cpu"))) == [[0, 1, 2, 3, 4]]


def test_kept_groups_are_those_that_were_added(tmp_path):
    prompts = make_prompts(3)
    files = [GroupFiles(tmp_path, rank, 2) for rank in range(2)]

    def group(place):
        return [
            Rollout(prompts[place], sample, Completion([place, 2], [-0.5, -2.0], "eos"), "so", "wrong", 0.0, "1", "no")
            for sample in range(2)
        ]

    files[0].add(4, {2: group(2)})
    files[1].add(4, {0: group(0)})
    files[0].add(5, {1: group(1)})
    assert files[1].read(4, prompts) == {0: group(0), 2: group(2)}
    files[0].drop(4)
    assert files[0].read(4, prompts) == {} and files[0].read(5, prompts) == {1: group(1)}


class Counting(Sampler):
    """Counts the completions that a session samples; one prompt a batch."""

    def __init__(self, sampler, log) -> None:
        self.sampler, self.log = sampler, log

    def portion(self, count, ranks):
        return 1

    def stream(self, prompts, seeds, settings, *, done=frozenset(), on_progress=None):
        for index, group in self.sampler.stream(prompts, seeds, settings, done=done, on_progress=on_progress):
            with self.log.open("a") as file:
                file.write("group\n")
            yield index, group

    def update_weights(self, weights):
        self.sampler.update_weights(weights)


@pytest.fixture
def counted(monkeypatch):
    """Sessions whose sampler counts its groups in a file of the session's folder."""
    import training_session

    plain = training_session.TorchSampler
    current = SimpleNamespace(log=None)
    monkeypatch.setattr(training_session, "TorchSampler", lambda *a, **k: Counting(plain(*a, **k), current.log))
    return current


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("method", [GRPO, SDPO])
def test_groups_that_were_finished_when_a_run_was_stopped_are_not_sampled_again(tmp_path, counted, method, processes):
    spec = make_spec(method, steps=3, prompts_per_step=6, prompts_per_update=3)

    def session(name, **options):
        counted.log = tmp_path / f"{name}.log"
        made = Session(tmp_path / name, spec, StageRuntime(processes=processes, state_every_steps=100), **options)
        return made, counted.log

    whole, log = session("whole")
    assert run_in_processes(whole, processes) == [0] * processes
    assert log.read_text().count("group") == 18
    stopped, log = session("stopped")
    # In the middle of the second step: ten of twelve groups, or somewhat more, since ranks finish what they draw.
    stopped.stop_requested = lambda: log.exists() and log.read_text().count("group") >= 10
    assert run_in_processes(stopped, processes) == [1] * processes
    before = log.read_text().count("group")
    assert 10 <= before < 12
    assert not (tmp_path / "stopped/state/step-2").exists()
    stopped.stop_requested = lambda: False
    assert run_in_processes(stopped, processes) == [0] * processes
    assert log.read_text().count("group") == 18
    assert stopped.weights() == whole.weights()
    assert without_times(stopped.metrics()) == without_times(whole.metrics())
    assert [path.name for path in (tmp_path / "stopped/state/rollouts").iterdir()] == ["step-2"]


@pytest.mark.parametrize(("processes", "sharding"), [(1, "none"), (2, "none"), (2, "full")])
def test_a_stop_during_updates_ends_at_once_and_nothing_is_sampled_again(tmp_path, counted, processes, sharding):
    """Two updates a step: the second is not begun, since the state of the step before is saved."""
    runtime = StageRuntime(processes=processes, sharding=sharding, state_every_steps=1)
    spec = make_spec(SDPO, steps=3, prompts_per_step=4)

    def session(name, **options):
        counted.log = tmp_path / f"{name}.log"
        return Session(tmp_path / name, spec, runtime, **options), counted.log

    whole, _ = session("whole")
    assert run_in_processes(whole, processes) == [0] * processes
    stopped, log = session("stopped")
    flag = tmp_path / "stop"
    stopped.on_report = lambda line: flag.touch() if line == {"step": 2, "phase": "updates"} else None
    stopped.stop_requested = flag.exists
    assert run_in_processes(stopped, processes) == [1] * processes
    assert [line["step"] for line in stopped.metrics()] == [1]
    assert sorted(path.name for path in (tmp_path / "stopped/state").iterdir()) == ["rollouts", "step-1"]
    stopped.stop_requested = lambda: False
    assert run_in_processes(stopped, processes) == [0] * processes
    assert log.read_text().count("group") == 12
    assert stopped.weights() == whole.weights()


def test_groups_are_kept_while_others_are_sampled(tmp_path, monkeypatch, counted):
    """A run that is killed loses what was sampled since the last part, and no more."""
    monkeypatch.setattr(sampling, "_KEEP_SECONDS", 0.0)
    counted.log = tmp_path / "log"
    session = Session(tmp_path, make_spec(GRPO, steps=1, prompts_per_step=4, checkpoint_every=1))

    class Killed(Exception):
        pass

    def die(line):
        if counted.log.exists() and counted.log.read_text().count("group") == 3:
            # Another thread keeps them.
            until = time.monotonic() + 30
            while not kept and time.monotonic() < until:
                time.sleep(0.01)
            raise Killed

    kept = []
    add = GroupFiles.add

    def adding(self, step, groups):
        add(self, step, groups)
        kept.extend(groups)

    monkeypatch.setattr(GroupFiles, "add", adding)
    monkeypatch.setattr(Counting, "portion", lambda self, count, ranks: 1)
    session.on_report = die
    with pytest.raises(Killed):
        session.run()
    session.on_report = lambda line: None
    found = len(kept)
    assert found >= 1
    session.run()
    # Three groups were sampled when the run died, and some of them kept; then the others of the four.
    assert counted.log.read_text().count("group") == 3 + 4 - found


def test_the_last_groups_of_a_long_step_are_kept_before_its_updates():
    """They are the longest ones, and were graded after the last write."""
    made, _, kept = step_of(grade, prompts=4)
    made.run()
    assert kept.added == {}, "a step of seconds is not worth a file"
    made, _, kept = step_of(grade, prompts=4)
    made.started_at -= 11
    made.run()
    assert sorted(kept.added) == [0, 1, 2, 3]


class Slow(Sampler):
    """Takes a while for each group, on a GPU so to say: other threads run meanwhile."""

    def stream(self, prompts, seeds, sampling, *, done=frozenset(), on_progress=None):
        for index, prompt in enumerate(prompts):
            time.sleep(GROUP_SECONDS)
            on_progress(len(seeds[index]), 0)
            yield index, [Completion([prompt[0], seed % 100], [0.0, 0.0], "eos") for seed in seeds[index]]


GROUP_SECONDS = 0.05


def step_of(grade, stop_requested=lambda: False, prompts=16):
    kept = SimpleNamespace(read=lambda *_: {}, added={})
    kept.add = lambda step, groups: kept.added.update(groups)
    spec = make_spec(GRPO, prompts_per_step=prompts, prompts_per_update=prompts)
    seconds: dict[str, float] = {}

    @contextmanager
    def phase(name):
        started = time.monotonic()
        yield
        seconds[name] = time.monotonic() - started

    shown = [Prompt(row, f"p{row}", "", "", str(row % 2), [], [row]) for row in range(prompts)]
    made = sampling.StepSampling(
        spec, 1, shown, Slow(), SimpleNamespace(decode=lambda ids, **_: f"{ids}"), grade, kept, World("cpu"), phase,
        heartbeat=lambda *_: None, stop_requested=stop_requested, first=0, samples=4,
    )  # fmt: skip
    return made, seconds, kept


def slowly(texts, prompts, stop_reasons):
    time.sleep(GROUP_SECONDS * len(texts) / 4)
    return [Verdict("correct", float(prompt.answer)) for prompt in prompts]


def test_groups_are_graded_while_others_are_sampled():
    made, seconds, _ = step_of(slowly)
    groups = made.run()
    assert [[rollout.prompt.row_id for rollout in group] for group in groups] == [[row] * 4 for row in range(16)]
    assert [group[0].reward for group in groups] == [row % 2 for row in range(16)]
    # Grading all of them takes as long as sampling them; what is left at the end is the last group or two.
    assert seconds["grading"] < 0.5 * 16 * GROUP_SECONDS


def test_a_stop_grades_and_keeps_what_was_sampled():
    calls = []
    made, _, kept = step_of(slowly, stop_requested=lambda: calls.append(1) or len(calls) > 5)
    assert made.run() is None
    assert sorted(kept.added) == [0, 1, 2, 3, 4]


def test_the_sampler_sleeps_where_all_groups_are_kept():
    """It took the weights of the resumed state, and waits awake until it samples."""
    made, _, kept = step_of(slowly, prompts=2)
    made.sampler = asked = Asked()
    groups = {place: [place] for place in range(2)}
    kept.read = lambda *_: groups
    assert made.run() == [[0], [1]]
    assert asked.calls == ["sleep"]


class Asked(Sampler):
    """Records what it is asked to do."""

    def __init__(self) -> None:
        self.calls = []

    def stream_portions(self, portions, prompts, seeds, sampling, *, done=frozenset(), on_progress=None):
        self.calls.append("sample")
        yield from ()

    def sleep(self) -> None:
        self.calls.append("sleep")


def test_an_error_of_the_grader_ends_the_step():
    def broken(texts, prompts, stop_reasons):
        raise RuntimeError("no worker")

    made, _, _ = step_of(broken)
    with pytest.raises(RuntimeError, match="no worker"):
        made.run()


def test_a_state_with_rollouts_of_an_earlier_version_is_read(tmp_path):
    from selfdistill.training.state import Progress, read_progress

    (tmp_path / "progress.json").write_text(json.dumps({"step": 3, "steps_without_signal": 1, "pending": [[]]}))
    assert read_progress(tmp_path) == Progress(3, 1)


def test_a_stop_while_nothing_is_finished_keeps_nothing(tmp_path):
    session = Session(tmp_path, make_spec(GRPO))
    session.stop_requested = lambda: True
    with pytest.raises(Interrupted):
        session.run()
    assert not (tmp_path / "state" / "rollouts").exists()
