"""Killed, stopped, edited while queued, two at once: the artifact is whole and right, or it is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from workflow_helpers import TARGET, set_learning_rate

STEPS = 40


def lengthen(config):
    """A training long enough to be caught in the act; its state is saved every other step."""
    config["recipes"]["toy_grpo"] |= {"steps": STEPS, "checkpoint_every": STEPS}


def save_often(project):
    path = project.root / "config/runtime.yaml"
    runtime = yaml.safe_load(path.read_text())
    runtime["models"]["toy"]["all"]["settings"]["state_every_steps"] = 2
    path.write_text(yaml.safe_dump(runtime))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def running_training(project) -> Path:
    """The train artifact without a manifest."""
    return next(path for path in project.artifacts("train") if not (path / "manifest.json").is_file())


def steps_done(artifact: Path) -> list[int]:
    path = artifact / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def interrupt_training(project, number: int) -> tuple[Path, str]:
    """Start the workflow, send a signal to all of it once training is under way; returns the artifact and output."""
    project.edit(lengthen)
    save_often(project)
    project.run("-n", TARGET)
    artifact = running_training(project)
    process = project.start(TARGET, tracking="on")
    wait_for(lambda: len(steps_done(artifact)) >= 5, process)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (artifact / "manifest.json").exists()
    assert list((artifact / "state").iterdir())
    return artifact, output


def checkpoint_bytes(artifact: Path) -> dict[str, bytes]:
    folder = artifact / "payload" / "checkpoints" / f"step-{STEPS}"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_kill_9_in_mid_training_resumes_to_the_same_bytes(project, finished, tmp_path):
    undisturbed = finished.copy(tmp_path / "undisturbed")
    undisturbed.edit(lengthen)
    undisturbed.run(TARGET)
    artifact, _ = interrupt_training(project, signal.SIGKILL)
    project.run("--unlock", TARGET)
    project.run(TARGET)
    attempts = json.loads((artifact / "provenance.json").read_text())["attempts"]
    assert len(attempts) == 2
    assert steps_done(artifact) == list(range(1, STEPS + 1))
    twin = undisturbed.root / artifact.relative_to(project.root)
    assert checkpoint_bytes(artifact) == checkpoint_bytes(twin)
    assert (project.root / TARGET).read_text() == (undisturbed.root / TARGET).read_text()
    assert "0 problems" in project.cli("verify")


def test_ctrl_c_is_resumed_by_the_same_command(project):
    artifact, output = interrupt_training(project, signal.SIGINT)
    assert "Traceback" not in output and "Error" not in output and "Exception" not in output
    assert output.count("\ninterrupted: what is finished is kept") == 1 and "Run the same command again" in output
    assert not (project.root / "results/mlflow").exists(), "nobody waits for MLflow after Ctrl-C"
    project.run(TARGET)
    assert steps_done(artifact) == list(range(1, STEPS + 1))
    assert (artifact / "log.txt").read_text().count("step 1/") == 1


def test_an_edit_while_jobs_wait_changes_nothing_for_them(project):
    project.edit(set_learning_rate(1e-3))
    project.run("-n", TARGET)
    artifact = running_training(project)
    process = project.start(TARGET)
    wait_for(lambda: (project.root / f"logs/train/{artifact.name}.log").exists(), process)
    project.edit(set_learning_rate(5e-3))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    spec = json.loads((artifact / "spec.json").read_text())
    assert spec["params"]["optimiser"]["learning_rate"] == 1e-3
    assert f"train/{artifact.name}" in (project.root / TARGET).read_text()
    project.run(TARGET)
    assert f"train/{artifact.name}" not in (project.root / TARGET).read_text()


def test_a_plan_made_again_while_its_table_waits_is_noticed(project):
    plan = project.root / "results/plans/ood/toy_grpo/plan.json"
    table = project.root / TARGET
    before = table.read_text()
    process = subprocess.run(
        [*project.command()[:1], "-m", "selfdistill.views", "ood", str(plan), str(table), "--digest", "0" * 64]
        + ["--log", "logs/views/x.log"],
        cwd=project.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "planned again while this job waited" in process.stderr
    assert table.read_text() == before


def test_two_schedulers_at_once_compute_each_artifact_once(project):
    project.edit(set_learning_rate(1e-3))
    before = project.attempts()
    schedulers = [project.start("--nolock", TARGET) for _ in range(2)]
    for process in schedulers:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert dict(project.attempts() - before) and set((project.attempts() - before).values()) == {1}
    assert "0 problems" in project.cli("verify")
