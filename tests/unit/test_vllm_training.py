"""Training and sampling with several vLLM engines, and with one whose weights are not renewed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from family_study import METHODS, SAMPLING, Study
from selfdistill.artifacts.tables import read_rows
from selfdistill.generation.vllm_sampler import VllmSampler
from selfdistill.plan.graph import Node
from selfdistill.schema.training import TrainingEvaluation
from small_specs import small

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make test-vllm)"),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"), "qwen3", None, "vllm")


def use(study, **settings):
    study.runtime.write_text(json.dumps({"defaults": {"settings": settings}}))


def metrics_of(artifact):
    return [json.loads(line) for line in artifact.metrics.read_text().splitlines()]


def sampled(artifact):
    rows = [row for path in sorted(artifact.payload.glob("rollouts*/step-*.parquet")) for row in read_rows(path)]
    return [(row["step"], row["row_id"], row["sample"], row["completion_ids"]) for row in rows]


def test_training_stops_where_the_engine_keeps_old_weights(study, monkeypatch):
    use(study, max_sampler_gap=0.01)
    node = study.train(METHODS["grpo"], steps=4)
    assert all(line["sampler_gap"] < 1e-4 for line in metrics_of(study.run(node)))
    study.freeze(node).unseal()
    monkeypatch.setattr(VllmSampler, "update_weights", lambda *_: None)
    artifact = study.run(node, expect=2)
    assert "differ by" in (artifact.folder / "log.txt").read_text()
    assert not artifact.is_sealed


def test_processes_that_train_have_an_engine_each(study):
    node = study.train(METHODS["sdpo"], steps=2)
    use(study, processes=1)
    alone = study.run(node)
    expected, expected_metrics = sampled(alone), metrics_of(alone)
    study.freeze(node).unseal()
    use(study, processes=2)
    together = study.run(node)
    assert sampled(together) == expected
    for ours, theirs in zip(metrics_of(together), expected_metrics, strict=True):
        assert ours["sampler_gap"] < 1e-4
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_processes_that_train_run_one_engine_together(study, sharding):
    """Its weights after a step are those that were trained; evaluations while training use it too."""
    looks = small(TrainingEvaluation, every_steps=1, samples=2, limit=3, sampling=SAMPLING, engine="vllm")
    node = study.train(METHODS["sdpo"], steps=2, seed=5, evaluation=looks)
    node = Node(node.spec, {**node.inputs, "evaluation_prompts": study.prompts})
    use(study, processes=1)
    alone = study.run(node)
    expected, expected_metrics = sampled(alone), metrics_of(alone)
    study.freeze(node).unseal()
    use(study, processes=2, tensor_parallel=2, sharding=sharding)
    together = study.run(node)
    assert sampled(together) == expected
    for ours, theirs in zip(metrics_of(together), expected_metrics, strict=True):
        assert ours["sampler_gap"] < 1e-4
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        for name in ("evaluation_avg_at_k", "evaluation_mean_length"):
            assert ours[name] == theirs[name]


@pytest.mark.parametrize(
    "settings",
    [
        {"separate_samplers": 1},
        {"separate_samplers": 2, "processes": 2},
        pytest.param({"separate_samplers": 1, "tensor_parallel": 2}, marks=pytest.mark.slow),
    ],
)
def test_engines_beside_the_training_are_sent_its_weights(study, settings):
    node = study.train(METHODS["grpo"], steps=4, seed=3)
    use(study, processes=1)
    expected = sampled(study.run(node))
    study.freeze(node).unseal()
    use(study, max_sampler_gap=1e-3, **settings)
    beside = study.run(node)
    assert sampled(beside) == expected
    assert all(line["sampler_gap"] < 1e-4 for line in metrics_of(beside))


@pytest.fixture
def beside(study):
    """A long training beside an engine of several processes: (its process, the first of the engine's, log)."""
    use(study, separate_samplers=1, tensor_parallel=2, state_every_steps=1)
    artifact = study.freeze(study.train(METHODS["grpo"], steps=500, seed=4))
    log = study.root / "logs/beside.log"
    command = [sys.executable, "-m", "selfdistill.run.launch", "train", str(artifact.manifest_path), "--log", str(log)]
    training = subprocess.Popen([*command, "--runtime", str(study.runtime)])
    ready = f"step {1 + max([0, *(int(p.name.split('-')[1]) for p in artifact.state.glob('step-*'))])}/500"
    wait_for(lambda: log.is_file() and ready in log.read_text(), 120)
    leader = min(process for process, _, command in processes() if "generation.remote.server" in command)
    assert sum(group == leader for _, group, _ in processes()) > 2
    yield training, leader, log
    training.kill()
    log.unlink()


@pytest.mark.slow
def test_the_end_of_an_engine_of_several_processes_is_heard_of_and_leaves_none_of_them(beside):
    training, leader, log = beside
    os.kill(leader, signal.SIGKILL)
    assert training.wait(60) == 1
    assert "a sampling process has exited" in log.read_text()
    wait_for(lambda: all(group != leader for _, group, _ in processes()), 60)


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_job_lets_the_training_save_its_state(beside):
    training, leader, log = beside
    for process in [training.pid, *(pid for pid, group, _ in processes() if group == leader)]:
        os.kill(process, signal.SIGTERM)
    assert training.wait(120) == 75
    assert "is saved" in log.read_text()
    wait_for(lambda: all(group != leader for _, group, _ in processes()), 60)


def processes():
    """(process, its group, its command) of all."""
    command = ["ps", "-ww", "-eo", "pid=,pgid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(int(pid), int(group), args) for pid, group, args in (line.split(maxsplit=2) for line in lines)]


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_shards_sample_what_one_engine_samples(study):
    node = study.rollouts()
    alone = read_rows(study.run(node).payload / "rollouts.parquet", ["row_id", "sample", "completion_ids"])
    study.freeze(node).unseal()
    for shard in ("1-of-2", "2-of-2"):
        study.run(node, "--shard", shard, "--marker", str(study.root / shard))
    together = read_rows(study.run(node).payload / "rollouts.parquet", ["row_id", "sample", "completion_ids"])
    assert together == alone
