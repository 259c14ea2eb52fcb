"""What must be there before an artifact is sealed: its spec, the checkpoints on schedule, metrics without gaps."""

import json
import shutil

import pytest

from selfdistill.schema.errors import UserError
from tracking_project import fill, of_stage, plan, write_metrics


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A training of four steps with checkpoints at 2 and 4, about to be sealed."""
    monkeypatch.chdir(tmp_path)
    plan()
    artifact = of_stage("train")[0]
    fill(artifact, seal=False)
    return artifact


def write_steps(artifact, *steps):
    artifact.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))


def test_a_complete_training_is_sealed(training):
    training.seal({})
    assert training.is_sealed


def test_a_training_whose_folder_was_removed_while_it_ran_is_not_sealed(training):
    """As after gc in mid-run: the job goes on, and makes the folder again with what it has still to write."""
    shutil.rmtree(training.folder)
    (training.payload / "checkpoints/step-4").mkdir(parents=True)
    (training.payload / "checkpoints/step-4/weights").write_text("late")
    write_metrics(training, range(3, 5))
    with pytest.raises(UserError, match=r"spec.json is missing"):
        training.seal({})
    assert not training.is_sealed and not training.seal_path.exists()


def test_every_checkpoint_on_schedule_is_needed(training):
    shutil.rmtree(training.payload / "checkpoints/step-2")
    with pytest.raises(UserError, match=r"is not sealed: payload/checkpoints/step-2 is missing. Start over: selfdis"):
        training.seal({})


def test_the_completions_of_every_step_are_needed(training):
    (training.payload / "rollouts/step-000003.parquet").unlink()
    with pytest.raises(UserError, match=r"is not sealed: payload/rollouts/step-000003.parquet is missing. Start over"):
        training.seal({})


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((1, 2, 4), "line 3 of metrics.jsonl is of step 4, not 3"),
        ((3, 4), "line 1 of metrics.jsonl is of step 3, not 1"),
        ((1, 2, 2, 3, 4), "line 3 of metrics.jsonl is of step 2, not 3"),
        ((1, 2, 3), "metrics.jsonl has 3 lines for 4 steps"),
        ((1, 2, 3, 4, 4), "metrics.jsonl has 5 lines for 4 steps"),
    ],
)
def test_metrics_have_every_step_once_and_in_order(training, steps, problem):
    write_steps(training, *steps)
    with pytest.raises(UserError, match=problem):
        training.seal({})
    assert not training.is_sealed


@pytest.mark.parametrize("content", [None, "{}\n", '{"step": 1', "[]\n", "\xff"])
def test_missing_and_damaged_metrics_are_one_line(training, content):
    training.metrics.unlink()
    if content is not None:
        training.metrics.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="is not sealed: metrics.jsonl is (missing|damaged)"):
        training.seal({})
