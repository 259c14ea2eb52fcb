"""Training and sampling with several vLLM engines, and with one whose weights are not renewed."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from family_study import METHODS, PROBLEM_TEXTS, SAMPLING, Study
from selfdistill.artifacts.tables import read_rows
from selfdistill.generation.vllm_sampler import VllmSampler
from selfdistill.plan.graph import Node
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import EXIT_KILLED, EXIT_RETRY
from selfdistill.schema.training import OnPolicy, TrainingEvaluation
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


@pytest.fixture
def left_behind():
    """Shared memory under the name that vLLM's CPU build gives it in every job: of a job that was killed."""
    files = [Path(f"/dev/shm/-tp:0-[0-1]-cpushm_{rank}") for rank in range(2)]
    for file in files:
        file.write_bytes(bytes(4096))
    yield
    for file in files:
        file.unlink(missing_ok=True)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_processes_that_train_run_one_engine_together(study, sharding, left_behind):
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


def long_training(study, **settings):
    """Sampling takes seconds: of 256 completions some leave what the model has learned, and do not end soon."""
    node = study.train(METHODS["grpo"], **settings)
    sampling = Sampling(max_tokens=900, temperature=2.0)
    on_policy = small(OnPolicy, group_size=64, sampling=sampling, engine="vllm")
    return replace(node, spec=node.spec.model_copy(update={"on_policy": on_policy}))


def start(study, node):
    """A job with an engine in two processes: those of the training, or the engine's own."""
    use(study, processes=2, tensor_parallel=2, state_every_steps=1)
    manifest, log = study.freeze(node).manifest_path, study.root / "logs/job.log"
    command = [sys.executable, "-m", "selfdistill.run.launch", node.stage, str(manifest), "--log", str(log)]
    return psutil.Popen([*command, "--runtime", str(study.runtime)])


@pytest.mark.slow
def test_a_job_ends_with_one_of_the_processes_that_run_an_engine_together(study):
    node = long_training(study, steps=500, seed=4)
    job = start(study, node)
    wait_for(lambda: (study.freeze(node).state / "step-1").is_dir(), 300)
    launcher, *others = job.children(recursive=True)
    second = next(process for process in others if process.environ().get("RANK") == "1")
    second.kill()
    assert job.wait(60) == EXIT_KILLED
    assert not psutil.wait_procs([launcher, *others], timeout=10)[1]


@pytest.mark.slow
def test_a_job_that_is_stopped_while_its_engine_samples_ends_soon_and_then_goes_on_to_the_same_end(study):
    node = long_training(study, steps=2, seed=6)
    assert start(study, node).wait(600) == 0
    artifact = study.freeze(node)
    expected, expected_metrics = sampled(artifact), metrics_of(artifact)
    artifact.unseal()
    job = start(study, node)
    wait_for(lambda: (artifact.state / "step-1").is_dir(), 300)
    time.sleep(0.3 * expected_metrics[1]["seconds_sampling"])
    # As Slurm does: a signal to every process.
    processes = [job, *job.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert job.wait(10) == EXIT_RETRY
    assert not psutil.wait_procs(processes, timeout=1)[1]
    assert [line["step"] for line in metrics_of(artifact)] == [1]
    assert start(study, node).wait(600) == 0
    assert sampled(artifact) == expected
    for ours, theirs in zip(metrics_of(artifact), expected_metrics, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_sampling_job_leaves_the_decision_to_the_job(study):
    """Its engine runs in processes of its own, which must not end before what they have sampled is saved."""
    node = study.rollouts(samples=64, seed=1)
    node = replace(node, spec=node.spec.model_copy(update={"sampling": Sampling(max_tokens=900, temperature=2.0)}))
    artifact, log = study.freeze(node), study.root / "logs/job.log"
    log.unlink(missing_ok=True)
    job = start(study, node)
    wait_for(lambda: log.is_file() and "sampling, step 0:" in log.read_text(), 300)
    processes = [job, *job.children(recursive=True)]
    assert len(processes) > 2
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert job.wait(30) == EXIT_RETRY
    assert not psutil.wait_procs(processes, timeout=10)[1]
    assert start(study, node).wait(600) == 0
    rows = read_rows(artifact.payload / "rollouts.parquet", ["row_id", "sample"])
    assert len(rows) == 64 * len(PROBLEM_TEXTS)


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
