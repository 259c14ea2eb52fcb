"""A user's mistake is met once in a run of Snakemake; the next run looks again."""

import pytest

from selfdistill.artifacts import refusal
from selfdistill.artifacts.store import Artifact, freeze, make_frozen_spec
from selfdistill.files import key_of
from selfdistill.plan.site import REFUSED
from selfdistill.plan.workspace import Workspace
from selfdistill.run import launch


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """A planned artifact of stage sample whose input does not exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(refusal.RUN_VARIABLE, raising=False)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/runtime.yaml").write_text("defaults: {resources: {gpus: 4, mem_mb: 9000}}\n")
    spec = make_frozen_spec("sample", {"distinct": 8, "repeats": 1, "seed": 0}, {"problems": "dataset/0123456789ab"})
    folder = tmp_path / "results/artifacts/sample" / f"x-{key_of(spec)}"
    freeze(folder, spec)
    return Artifact.open(folder)


def run(artifact):
    return launch.run(["sample", str(artifact.manifest_path), "--log", "logs/x.log"])


def new_run(monkeypatch):
    monkeypatch.setenv(refusal.RUN_VARIABLE, "")
    refusal.begin_run()


def attempts(artifact):
    return (artifact.folder / "log.txt").read_text().count("does not exist under")


def test_a_retry_of_a_refused_job_ends_with_the_same_reason_and_looks_at_nothing(artifact, monkeypatch, capsys):
    new_run(monkeypatch)
    assert run(artifact) == 2
    (artifact.folder / "spec.json").unlink()
    assert run(artifact) == 2
    assert (
        "not tried again, because a retry cannot help: artifact dataset/0123456789ab does not exist"
        in capsys.readouterr().err
    )


def test_the_next_run_looks_again(artifact, monkeypatch, capsys):
    new_run(monkeypatch)
    run(artifact)
    new_run(monkeypatch)
    assert run(artifact) == 2
    assert "not tried again" not in capsys.readouterr().err
    assert attempts(artifact) == 2


def test_without_the_name_of_a_run_every_job_looks(artifact, capsys):
    assert run(artifact) == run(artifact) == 2
    assert "not tried again" not in capsys.readouterr().err
    assert not (artifact.folder / "refused.json").exists()


def test_the_retry_of_a_refused_job_asks_for_next_to_nothing(artifact, monkeypatch):
    new_run(monkeypatch)
    project, run_name = Workspace({}), artifact.folder.name
    assert project.needs("sample", run_name, attempt=2).gpus == 4
    refusal.remember(artifact.folder, "no")
    assert project.needs("sample", run_name, attempt=1).gpus == 4
    assert project.needs("sample", run_name, attempt=2) == REFUSED
    new_run(monkeypatch)
    assert project.needs("sample", run_name, attempt=2).gpus == 4


def test_a_damaged_note_refuses_nothing(artifact, monkeypatch):
    new_run(monkeypatch)
    (artifact.folder / "refused.json").write_text("{")
    assert refusal.recall(artifact.folder) is None
