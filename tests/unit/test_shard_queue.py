"""Shards of one artifact take prompts from a queue of files: each prompt once, nobody waits long, the same rows."""

from __future__ import annotations

import heapq
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from selfdistill.artifacts.tables import read_rows
from selfdistill.generation import Completion, Sampler
from selfdistill.rollouts import Prompt
from selfdistill.run.job import Job, Shard
from selfdistill.schema.common import MathGrader, Sampling
from selfdistill.schema.errors import Interrupted
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import RolloutsSpec
from selfdistill.stages.shared import generate
from selfdistill.stages.shared.shard_queue import ShardQueue
from small_specs import small

ALONE = Shard()
KEYS = [10 * place for place in range(23)]


def test_shards_take_every_prompt_once(tmp_path):
    taking = [ShardQueue(tmp_path, Shard(index, 3)).portions(KEYS, 4, {0, 10, 20, 30, 50}) for index in range(3)]
    taken = []
    while taking:
        for portions in list(taking):
            places = next(portions, None)
            if places is None:
                taking.remove(portions)
            else:
                taken.append(places)
    # The first portion is finished; one with a finished prompt is taken whole, as the sampler leaves that prompt out.
    assert sorted(taken) == [list(range(start, min(start + 4, 23))) for start in range(4, 23, 4)]


def test_a_shard_that_was_killed_takes_its_own_again_and_nobody_elses(tmp_path):
    first = ShardQueue(tmp_path, Shard(0, 2)).portions(KEYS, 4, set())
    killed = [next(first), next(first)]
    others = list(ShardQueue(tmp_path, Shard(1, 2)).portions(KEYS, 4, set()))
    again = list(ShardQueue(tmp_path, Shard(0, 2)).portions(KEYS, 4, set(KEYS[:4])))
    assert killed == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert again == [[4, 5, 6, 7]]
    assert sorted(sum(others + killed, [])) == list(range(23))


def test_another_number_of_shards_begins_a_queue_of_its_own(tmp_path):
    assert list(ShardQueue(tmp_path, Shard(0, 2)).portions(KEYS, 30, set())) == [list(range(23))]
    assert list(ShardQueue(tmp_path, Shard(0, 4)).portions(KEYS, 30, {0})) == [list(range(23))]


def take(folder: Path, index: int, start, found) -> None:
    start.wait()
    found.put(list(ShardQueue(folder, Shard(index, 4)).portions(list(range(500)), 1, set())))


def test_processes_at_once_never_take_the_same_prompt(tmp_path):
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(4), context.Queue()
    processes = [context.Process(target=take, args=(tmp_path, index, start, found)) for index in range(4)]
    for process in processes:
        process.start()
    taken = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(place for portions in taken for (place,) in portions) == list(range(500))


def test_waiting_falls_against_fixed_shares(tmp_path):
    """Eight shards, 256 prompts whose completions take log-normal times; one shard starts late, as in a full queue."""
    seconds = 10 * np.random.default_rng(1).lognormal(0, 0.6, 256)
    starts = [0.0] * 7 + [120.0]
    dealt = [start + seconds[index::8].sum() for index, start in enumerate(starts)]
    streams = [ShardQueue(tmp_path, Shard(index, 8)).portions(range(256), 2, set()) for index in range(8)]
    free, ends = [(start, index) for index, start in enumerate(starts)], [0.0] * 8
    heapq.heapify(free)
    while free:
        now, index = heapq.heappop(free)
        ends[index] = now
        places = next(streams[index], None)
        if places is not None:
            heapq.heappush(free, (now + seconds[places].sum(), index))
    waiting, before = (max(times) - np.mean(times) for times in (ends, dealt))
    print(f"waiting: {before:.0f} s of fixed shares, {waiting:.0f} s from the queue")
    assert waiting < 0.4 * before
    assert max(ends) < max(dealt)


class Echo(Sampler):
    """A model that says its prompt and its seed; `most`: prompts after which it is stopped."""

    loaded: list[int] = []

    def __init__(self, most: int = 10**6) -> None:
        self.most = most
        self.loaded.append(1)

    def stream(self, prompts, seeds, sampling, *, done=frozenset(), on_progress=None):
        for index, prompt in enumerate(prompts):
            if index not in done:
                if self.most == 0:
                    raise Interrupted("stopped")
                self.most -= 1
                yield index, [Completion([*prompt, seed % 1000], [0.0, 0.0], "eos") for seed in seeds[index]]

    def close(self) -> None:
        pass

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


@pytest.fixture
def rollouts(tmp_path, monkeypatch):
    """`run(folder, shard, most)`: a shard of a rollouts job over 23 prompts, merged by the job without a shard."""
    prompts = [Prompt(key, f"p{key}", "", "", "1", [], [key]) for key in KEYS]
    spec = small(RolloutsSpec, samples=2, sampling=Sampling(max_tokens=9), grader=MathGrader(), engine="torch")
    monkeypatch.setattr(generate, "model_folder", lambda model, step: tmp_path)
    monkeypatch.setattr(generate, "load_tokenizer", lambda folder: Echo())

    def run(folder: Path, shard: Shard = ALONE, most: int = 10**6) -> list[str]:
        artifact = SimpleNamespace(input=lambda role: None, state=folder / "state", payload=folder)
        told: list[str] = []
        tee = SimpleNamespace(print=told.append, log=told.append, has_terminal=False, label="test")
        monkeypatch.setattr(generate, "load_sampler", lambda *_, **__: Echo(most))
        job = generate.RolloutJob(Job(artifact, StageRuntime(part_prompts=3), tee, shard=shard), spec, prompts)
        job.sample(None)
        if not shard.is_partial:
            job.merge([None])
        return told

    return run


def test_shards_give_the_rows_of_one_job_also_when_one_was_stopped(rollouts, tmp_path):
    rollouts(tmp_path / "alone")
    with pytest.raises(Interrupted):
        rollouts(tmp_path / "spread", Shard(0, 3), most=2)
    rollouts(tmp_path / "spread", Shard(1, 3), most=10**6)
    rollouts(tmp_path / "spread", Shard(0, 3))
    before = len(Echo.loaded)
    assert rollouts(tmp_path / "spread", Shard(2, 3)) == []
    rollouts(tmp_path / "spread")
    # Neither a shard that finds nothing nor the job that merges has loaded a model.
    assert len(Echo.loaded) == before
    rows = [read_rows(tmp_path / name / "rollouts.parquet") for name in ("alone", "spread")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2 * len(KEYS)


def test_a_late_shard_loads_no_model_while_others_still_sample(rollouts, tmp_path):
    with pytest.raises(Interrupted):
        rollouts(tmp_path, Shard(0, 2), most=0)
    for _ in ShardQueue(tmp_path / "state/step-0", Shard(0, 2)).portions(KEYS, 3, set()):
        pass
    before = len(Echo.loaded)
    assert rollouts(tmp_path, Shard(1, 2)) == ["step 0: other shards have taken all prompts."]
    assert len(Echo.loaded) == before
