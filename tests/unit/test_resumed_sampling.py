"""Rollouts and evaluation that are killed, stopped or sharded end in the same completions."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest

from family_study import METHODS, Study
from selfdistill.artifacts.tables import read_rows
from selfdistill.stages.shared.parts import PartFiles

#: Four batches (of the four lengths of prompts), and a part for every prompt.
CUT_SMALL = {"sampler_batch_tokens": 400, "part_prompts": 1}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"), "qwen3", None)


@pytest.fixture
def runtime(study):
    """Writes settings; those of other tests are forgotten."""

    def write(**settings):
        study.runtime.write_text(json.dumps({"defaults": {"settings": settings}}))

    yield write
    study.runtime.write_text("{}")


def result(artifact):
    return (artifact.payload / "rollouts.parquet").read_bytes()


def texts(artifact):
    rows = read_rows(artifact.payload / "rollouts.parquet")
    return [(row["step"], row["row_id"], row["sample"], row["completion_ids"], row["reward"]) for row in rows]


def again(study, node):
    """Forget an artifact's result and compute it anew."""
    study.freeze(node).unseal()
    return study.run(node)


def after_parts(count, do):
    """Makes the process do something as soon as it has written so many parts."""
    add, written = PartFiles.add, []

    def adding(parts, rows):
        add(parts, rows)
        written.append(rows)
        if len(written) == count:
            do()

    return adding


def in_child(function):
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()
    return child.exitcode


def test_the_size_of_parts_changes_nothing(study, runtime):
    node = study.rollouts(seed=1)
    runtime(sampler_batch_tokens=400, part_prompts=64)
    whole = result(study.run(node))
    for size in (1, 2):
        runtime(sampler_batch_tokens=400, part_prompts=size)
        assert result(again(study, node)) == whole


def test_the_size_of_batches_changes_no_text(study, runtime):
    node = study.rollouts(seed=1)
    found = []
    for budget in (1, 400, 100000):
        runtime(sampler_batch_tokens=budget)
        found.append(texts(again(study, node)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("stage", ["rollouts", "evaluate"])
def test_a_killed_job_goes_on_with_what_it_had_and_ends_in_the_same_bytes(study, runtime, monkeypatch, stage):
    node = study.rollouts(seed=2) if stage == "rollouts" else study.evaluate(study.model, [0], samples=3)
    runtime(**CUT_SMALL)
    whole = result(study.run(node))
    study.freeze(node).unseal()
    monkeypatch.setattr(PartFiles, "add", after_parts(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert in_child(lambda: study.run(node)) == -signal.SIGKILL
    kept = list((study.freeze(node).state / "step-0").glob("*.arrow"))
    assert len(kept) == 3
    monkeypatch.undo()
    artifact = study.run(node)
    assert result(artifact) == whole
    log = (artifact.folder / "log.txt").read_text()
    assert "3 of 5 prompts were finished before" in log and "tokens/s)" in log
    assert not artifact.state.exists()


def test_a_stopped_job_saves_also_what_is_not_a_whole_part_and_asks_to_come_back(study, runtime, monkeypatch):
    node = study.rollouts(seed=3)
    runtime(sampler_batch_tokens=1, part_prompts=2)
    whole = result(study.run(node))
    study.freeze(node).unseal()
    monkeypatch.setattr(PartFiles, "add", after_parts(1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert study.run(node, expect=75).is_sealed is False
    monkeypatch.undo()
    assert 2 <= len(PartFiles(study.freeze(node).state / "step-0", None).finished()) < 5
    assert result(study.run(node)) == whole


def test_checkpoints_that_are_done_are_not_sampled_again(study, runtime, monkeypatch):
    training = study.train(METHODS["grpo"])
    study.run(training)
    node = study.evaluate(training, [2])
    runtime(**CUT_SMALL)
    study.run(node)
    study.freeze(node).unseal()
    monkeypatch.setattr(PartFiles, "add", after_parts(5, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert in_child(lambda: study.run(node)) == -signal.SIGKILL
    monkeypatch.setattr(PartFiles, "add", lambda *_: pytest.fail("sampled again"))
    assert [row["step"] for row in read_rows(study.run(node).payload / "rollouts.parquet")] == [2] * 10


def test_shards_that_run_at_the_same_time_sample_what_one_job_samples_and_the_last_job_merges(study, runtime):
    node = study.rollouts(seed=4)
    runtime(part_prompts=1)
    alone = texts(study.run(node))
    study.freeze(node).unseal()
    shards = {name: study.root / f"{name}.done" for name in ("2-of-2", "1-of-2")}
    children = [
        multiprocessing.get_context("fork").Process(
            target=study.run, args=(node, "--shard", name, "--marker", str(marker)), kwargs={"log": name}
        )
        for name, marker in shards.items()
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    artifact = study.freeze(node)
    assert not artifact.is_sealed
    for name, marker in shards.items():
        assert marker.exists() and (artifact.folder / f"provenance-{name}.json").is_file()
    # A shard that is held up leaves more to the other, but no prompt is sampled twice or left out.
    parts = [path.stem.rsplit("-", 1)[1] for path in (artifact.state / "step-0").glob("*-of-2-*.arrow")]
    assert len(parts) == len(set(parts)) == 5
    artifact = study.run(node, log="merge")
    assert texts(artifact) == alone
    assert "sampling" not in (study.root / "logs/merge.log").read_text()
    # A shard that starts after the merge has nothing to do.
    marker.unlink()
    study.run(node, "--shard", name, "--marker", str(marker))
    assert marker.exists()
