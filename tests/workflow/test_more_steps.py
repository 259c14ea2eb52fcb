"""steps: 2 -> 4: the longer run continues from the finished one, in the same bytes, and its lineage says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from workflow_helpers import TARGET


def planned_with(project, steps: int):
    """The training of toy_grpo with so many steps, planned."""
    project.edit(lambda config: config["recipes"]["toy_grpo"].update(steps=steps))
    project.run("-n", "--", TARGET)
    folders = project.artifacts("train")
    return next(f for f in folders if json.loads((f / "spec.json").read_text())["params"]["steps"] == steps)


def train(project, folder) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "selfdistill.run.launch", "train", str(folder / "manifest.json"), "--log", "log.txt"],
        cwd=project.root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def payload(folder) -> dict[str, dict]:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: entry for name, entry in files.items() if name.startswith("payload/")}


def test_a_finished_run_is_gone_on_from(project):
    project.edit_runtime(lambda file: file["stages"].update(train={"settings": {"keep_last_state": True}}))
    (whole,) = project.artifacts("train")
    scratch = payload(whole)
    shutil.rmtree(whole)
    shorter = planned_with(project, 2)
    train(project, shorter)
    assert (shorter / "last_state/step-2").is_dir()

    longer = planned_with(project, 4)
    explained = " ".join(project.cli("explain", "toy_grpo").split())
    assert f"steps: 2 -> 4 continues from train/{shorter.name}, after step 2." in explained
    assert f"continues from train/{shorter.name}." in train(project, longer)
    assert payload(longer) == scratch
    attempt = json.loads((longer / "provenance.json").read_text())["attempts"][-1]
    assert attempt["continued_from"]["name"] == f"train/{shorter.name}" and attempt["sealed"]
    shown = " ".join(project.cli("lineage", longer.name).split())
    assert f"continued from train/{shorter.name} after step 2" in shown
    record = json.loads(project.cli("lineage", longer.name, "--json"))
    assert record["artifacts"][f"train/{longer.name[-12:]}"]["continued_from"] == attempt["continued_from"]
    project.cli("verify", f"train/{longer.name}")
