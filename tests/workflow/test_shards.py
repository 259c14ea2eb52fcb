"""One rollout or evaluation job spread over several: same table, same artifact, nothing to do afterwards."""

from __future__ import annotations

import shutil

import yaml

from selfdistill.plan.workspace import Workspace
from workflow_helpers import TARGET


def spread(project, shards, gpus=0):
    path = project.root / "config/runtime.yaml"
    runtime = yaml.safe_load(path.read_text())
    runtime["models"]["toy"]["evaluate"] = {"settings": {"shards": shards}, "resources": {"gpus": gpus}}
    path.write_text(yaml.safe_dump(runtime))


def sample_twice(config):
    config["benchmarks"]["toy_id"]["samples"] = 2


def test_a_job_spread_over_several_gives_the_same_artifact(project, finished, tmp_path, stages_computed):
    spread(project, 3)
    assert "Nothing to be done" in project.run(TARGET)

    alone = finished.copy(tmp_path / "alone")
    for study in (alone, project):
        study.edit(sample_twice)
    alone.run(TARGET)
    output = project.run(TARGET)
    assert "shard 2-of-3" in output
    assert stages_computed() == {"evaluate": 2, "epistemics": 2}
    assert (project.root / TARGET).read_text() == (alone.root / TARGET).read_text()
    assert len(list(project.root.glob("logs/evaluate/*.3-of-3.log"))) == 2
    assert "0 problems" in project.cli("verify")

    # The number of jobs is no part of the result: with another one, or without the markers, there is nothing to do.
    spread(project, 2)
    assert "Nothing to be done" in project.run(TARGET)
    for path in project.root.glob("results/artifacts/evaluate/*/shards"):
        shutil.rmtree(path)
    assert "Nothing to be done" in project.run(TARGET)


def test_shards_request_the_gpus_and_the_last_job_requests_none(project, monkeypatch):
    spread(project, 2, gpus=1)
    project.edit(sample_twice)
    plan = project.run("-n", TARGET)
    assert plan.count("shard 1-of-2") == plan.count("shard 2-of-2") == 2 and plan.count("(1 GPU)") == 4
    monkeypatch.chdir(project.root)
    workspace = Workspace(project.config(), plans=False)
    runs = {path.name: (path / "manifest.json").is_file() for path in project.artifacts("evaluate")}
    assert sorted(runs.values()) == [False, False, True, True]
    for run, is_sealed in runs.items():
        assert workspace.shards("evaluate", run) == (1 if is_sealed else 2)
        assert workspace.needs("evaluate", run).gpus == 0
        assert workspace.needs("evaluate", run, shard="1-of-2").gpus == 1
