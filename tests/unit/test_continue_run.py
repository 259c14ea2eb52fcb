"""A run of more steps continues from a finished one only where the result is the same; else it says why not."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from selfdistill.artifacts.continuation import CONTINUED, last_state, obstacle, shorter_runs, start_of
from selfdistill.artifacts.store import Artifact, freeze, make_frozen_spec
from selfdistill.files import key_of, read_json, write_atomically
from selfdistill.schema.common import Optimiser, Sampling
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.schema.training import TrainingEvaluation
from selfdistill.stages.shared.continue_run import continue_run
from selfdistill.training.data import TrainingFolder
from small_specs import small
from training_session import GRPO, SDPO, SFT, Session, make_spec, run_in_processes, without_times

EVALUATION = small(TrainingEvaluation, every_steps=2, limit=3, sampling=Sampling(max_tokens=8))


def artifact_of(root, spec: TrainSpec) -> Artifact:
    frozen = make_frozen_spec("train", spec.identity(), {})
    folder = root / "train" / f"tiny-{key_of(frozen)}"
    folder.mkdir(parents=True, exist_ok=True)
    freeze(folder, frozen)
    return Artifact.open(folder)


SHARDED = {"processes": 2, "sharding": "full"}


def train(artifact: Artifact, *, keep: bool = True, **runtime) -> Session:
    """Train and seal the artifact, as the stage does; in two processes if `runtime` says so."""
    session = Session(artifact.payload, artifact.spec(TrainSpec), StageRuntime(state_every_steps=1, **runtime))
    artifact.payload.mkdir(exist_ok=True)
    folder = TrainingFolder(
        artifact.payload / "checkpoints", artifact.state, artifact.metrics, artifact.folder / "profile",
        artifact.last_state if keep else None,
    )  # fmt: skip
    if runtime:
        assert run_in_processes(SimpleNamespace(run=lambda: session.run(folder=folder))) == [0, 0]
    else:
        session.run(folder=folder)
    for step in artifact.spec(TrainSpec).due_metrics if session.spec.on_policy else ():  # The stage writes them.
        write_atomically(artifact.payload / TrainSpec.rollouts_file(step), "rows")
    artifact.seal({})
    return session


def job_of(artifact: Artifact, **runtime):
    printed = []
    tee = SimpleNamespace(print=printed.append, printed=printed)
    return SimpleNamespace(artifact=artifact, runtime=StageRuntime(**runtime), notes={}, tee=tee)


def metrics(artifact: Artifact) -> list:
    return without_times([json.loads(line) for line in artifact.metrics.read_text().splitlines()])


def weights(artifact: Artifact) -> dict[str, bytes]:
    return {
        str(path.relative_to(artifact.payload)): path.read_bytes()
        for path in artifact.payload.rglob("*")
        if path.is_file() and "checkpoints" in path.parts
    }


@pytest.mark.parametrize("damage", ["lost", "changed", "not a number", "no JSON"])
def test_a_finished_training_without_its_spec_is_passed_over(tmp_path, damage):
    """It stopped every other training with a traceback."""
    planned = artifact_of(tmp_path, make_spec(GRPO, steps=4))
    for steps in (2, 3):
        artifact_of(tmp_path, make_spec(GRPO, steps=steps)).manifest_path.write_text("{}")
    longest, shorter = shorter_runs(planned.frozen_spec, tmp_path)
    spec = longest.folder / "spec.json"
    if damage == "lost":
        spec.unlink()
    else:
        number = {"changed": "1", "not a number": "NaN"}.get(damage)
        spec.write_text("{" if number is None else spec.read_text().replace('"steps": 3', f'"steps": {number}'))
    assert [artifact.name for artifact in shorter_runs(planned.frozen_spec, tmp_path)] == [shorter.name]


@pytest.mark.parametrize("method", [GRPO, SDPO, SFT])
def test_a_run_that_goes_on_has_the_bytes_of_one_that_did_all_steps(tmp_path, method):
    """SDPO has a moving teacher, whose weights are part of the state; step 1 is warm-up."""
    two, four = make_spec(method, steps=2), make_spec(method, steps=4)
    whole = artifact_of(tmp_path / "whole", four)
    train(whole, keep=False)
    assert not whole.last_state.exists()

    shorter, longer = artifact_of(tmp_path, two), artifact_of(tmp_path, four)
    train(shorter)
    assert last_state(shorter).is_dir() and not shorter.state.exists()
    job = job_of(longer)
    continue_run(job)
    assert job.tee.printed == [f"continues from {shorter.name}."]
    session = train(longer)
    assert [line["step"] for line in session.reports if "phase" not in line] == [3, 4]
    assert weights(longer) == weights(whole) and metrics(longer) == metrics(whole)
    assert job.notes[CONTINUED]["name"] == shorter.name and job.notes[CONTINUED]["step"] == 2
    assert set(whole.manifest["files"]) == set(longer.manifest["files"])


def test_a_run_of_sharded_processes_goes_on_in_the_same_bytes(tmp_path):
    """Each of the two ranks has written its part of the last state, the moving teacher's included, and reads it."""
    whole = artifact_of(tmp_path / "whole", make_spec(SDPO, steps=4))
    train(whole, keep=False, **SHARDED)
    shorter, longer = (
        artifact_of(tmp_path, make_spec(SDPO, steps=2)),
        artifact_of(tmp_path, make_spec(SDPO, steps=4)),
    )
    train(shorter, **SHARDED)
    assert len(list((last_state(shorter) / "shards").glob("*.distcp"))) == 2 and not shorter.state.exists()
    job = job_of(longer, **SHARDED)
    continue_run(job)
    assert job.tee.printed == [f"continues from {shorter.name}."]
    # What is copied is what the longer run keeps: had it begun anew, step 1 would be written again, later.
    before = longer.metrics.read_bytes()
    checkpoint = longer.payload / "checkpoints/step-2/model.safetensors"
    written = checkpoint.stat().st_mtime_ns
    train(longer, **SHARDED)
    assert longer.metrics.read_bytes().startswith(before) and checkpoint.stat().st_mtime_ns == written
    assert weights(longer) == weights(whole) and metrics(longer) == metrics(whole)
    assert set(whole.manifest["files"]) == set(longer.manifest["files"])


def test_a_damaged_shard_is_not_taken_over(tmp_path):
    shorter, longer = artifact_of(tmp_path, make_spec(SFT, steps=2)), artifact_of(tmp_path, make_spec(SFT, steps=4))
    train(shorter, **SHARDED)
    shard = last_state(shorter) / "shards" / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    job = job_of(longer, **SHARDED)
    continue_run(job)
    assert "__1_0.distcp does not match its digest" in job.tee.printed[0] and not longer.state.exists()


def test_a_run_that_has_begun_goes_on_from_its_own_state_and_remembers_where_it_started(tmp_path):
    shorter, longer = artifact_of(tmp_path, make_spec(SFT, steps=2)), artifact_of(tmp_path, make_spec(SFT, steps=4))
    train(shorter)
    continue_run(job_of(longer))
    shutil.rmtree(shorter.folder)
    again = job_of(longer)
    continue_run(again)
    assert again.notes[CONTINUED]["id"] == shorter.id and not again.tee.printed
    begun = artifact_of(tmp_path, make_spec(SFT, steps=6))
    (begun.state / "step-1").mkdir(parents=True)
    train(artifact_of(tmp_path, make_spec(SFT, steps=2)))
    job = job_of(begun)
    continue_run(job)
    assert job.notes == {} and [path.name for path in begun.state.iterdir()] == ["step-1"]


def test_the_longest_run_that_differs_in_steps_alone_is_taken(tmp_path):
    for steps in (2, 3):
        train(artifact_of(tmp_path, make_spec(SFT, steps=steps)))
    train(artifact_of(tmp_path, make_spec(SFT, steps=3, seed=1)))
    longer = artifact_of(tmp_path, make_spec(SFT, steps=4))
    found = [artifact.frozen_spec["params"] for artifact in shorter_runs(longer.frozen_spec, tmp_path)]
    assert [(params["steps"], params["seed"]) for params in found] == [(3, 0), (2, 0)]
    assert shorter_runs(artifact_of(tmp_path, make_spec(SFT, steps=2)).frozen_spec, tmp_path) == []
    assert start_of(longer.frozen_spec, tmp_path).startswith("continues from train/tiny-")
    job = job_of(longer)
    continue_run(job)
    # Its last step has a checkpoint that a run of four steps has not.
    assert sorted(path.name for path in (longer.payload / "checkpoints").iterdir()) == ["step-2"]


COSINE = Optimiser(learning_rate=3e-3, warmup_steps=1, schedule="cosine")


@pytest.mark.parametrize(
    ("shorter", "longer", "reason"),
    [
        ({"optimiser": COSINE}, {}, "optimiser.schedule = cosine follows the number of steps"),
        ({"steps": 3, "evaluation": EVALUATION}, {}, "step 3 was evaluated only because it was the last"),
        ({"checkpoint_every": 3}, {"checkpoint_every": 1}, "it has no checkpoint of step 1 (checkpoint_every)"),
        ({}, {}, "its last state was not kept (keep_last_state in config/runtime.yaml)"),
    ],
)
def test_why_a_run_is_trained_from_the_beginning(tmp_path, shorter, longer, reason):
    first = artifact_of(tmp_path, make_spec(SFT, **{"steps": 2, **shorter}))
    first.payload.mkdir()
    (first.payload / "x").write_text("")
    first.manifest_path.write_text("{}")
    second = artifact_of(tmp_path, make_spec(SFT, **{**shorter, "steps": 4, **longer}))
    assert obstacle(second.spec(TrainSpec), first).startswith(reason)
    said = start_of(second.frozen_spec, tmp_path)
    assert said.startswith(f"is trained from step 1, not on from {first.name}: {reason}")
    job = job_of(second)
    continue_run(job)
    assert reason in job.tee.printed[0] and not second.state.exists() and job.notes == {}


def test_what_differs_in_more_than_steps_is_no_candidate(tmp_path):
    train(artifact_of(tmp_path, make_spec(SFT, steps=2)))
    other = artifact_of(tmp_path, make_spec(SFT, steps=4, prompts_per_step=6))
    assert start_of(other.frozen_spec, tmp_path) == ""
    assert start_of({"stage": "evaluate", "params": {}}, tmp_path) == ""


@pytest.mark.parametrize("place", ["state", "checkpoint"])
def test_damage_is_not_taken_over(tmp_path, place):
    shorter, longer = artifact_of(tmp_path, make_spec(SFT, steps=2)), artifact_of(tmp_path, make_spec(SFT, steps=4))
    train(shorter)
    files = {
        "state": last_state(shorter) / "tensors.pt",
        "checkpoint": shorter.payload / "checkpoints/step-2/model.safetensors",
    }
    content = bytearray(files[place].read_bytes())
    content[-1] ^= 1
    files[place].write_bytes(content)
    job = job_of(longer)
    continue_run(job)
    assert "damaged" in job.tee.printed[0] and not longer.state.exists()
    whole = artifact_of(tmp_path / "whole", make_spec(SFT, steps=4))
    for artifact in (longer, whole):
        train(artifact)
    assert weights(longer) == weights(whole) and metrics(longer) == metrics(whole)


def test_a_run_that_was_imported_without_its_completions_is_not_taken_over(tmp_path):
    shorter, longer = artifact_of(tmp_path, make_spec(GRPO, steps=2)), artifact_of(tmp_path, make_spec(GRPO, steps=4))
    train(shorter)
    (shorter.payload / "rollouts" / "step-000001.parquet").unlink()
    job = job_of(longer)
    continue_run(job)
    assert "step-000001.parquet is missing" in job.tee.printed[0] and not longer.state.exists()


def test_a_state_of_another_sharding_is_not_taken_over(tmp_path):
    shorter, longer = artifact_of(tmp_path, make_spec(SFT, steps=2)), artifact_of(tmp_path, make_spec(SFT, steps=4))
    train(shorter)
    job = job_of(longer, sharding="full")
    continue_run(job)
    assert "its state was not saved with sharding: full" in job.tee.printed[0] and not longer.state.exists()


def test_a_kept_state_goes_with_its_run(tmp_path):
    shorter = artifact_of(tmp_path, make_spec(SFT, steps=2))
    train(shorter)
    assert read_json(last_state(shorter) / "progress.json")["step"] == 2
    assert not any("last_state" in name for name in shorter.manifest["files"])
    shorter.unseal()
    assert not shorter.last_state.exists()
