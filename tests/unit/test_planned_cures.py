"""What is planned for GPUs and was never run: cures on real models, and the experiment that decides about "wait"."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.plan.diff import diff
from selfdistill.plan.planner import Planner
from selfdistill.plan.settings import load_config, merge
from selfdistill.plan.views import plan_view
from selfdistill.schema.assets import read_assets
from selfdistill.schema.errors import UserError

#: FLOP/s of a GPU in the table of docs/cures.md 6, and its steps.
RATE, STEPS = 240e12, 100
NAMES = {"qwen3small": "Qwen3-1.7B", "qwen3": "Qwen3-8B", "deepseek": "DeepSeek-7B"}


def config_with(root: Path, overlay: str) -> dict:
    base, changes = (yaml.safe_load((root / "config" / name).read_text()) for name in ("config.yaml", overlay))
    return merge(base, changes)


def recorded(root: Path):
    """The lock as `selfdistill assets fetch` leaves it, with a digest of the file with the problems."""
    lock = read_assets(root)
    entry = lock.assets["deepscaler_preview"].model_copy(update={"files": {"deepscaler.json": "0" * 64}})
    return lock.model_copy(update={"assets": lock.assets | {"deepscaler_preview": entry}})


@pytest.fixture
def hours(tmp_path, project_root, monkeypatch):
    """GPU hours of a run by `selfdistill estimate --completion-tokens 8000`."""
    shutil.copytree(project_root / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)

    def of(experiment: str, overlay: str) -> float:
        options = ("--completion-tokens", "8000", "--configfile", f"config/{overlay}")
        done = CliRunner().invoke(app, ["estimate", experiment, *options], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        petaflop = float(re.search(r"([\d,]+) PFLOP", done.output)[1].replace(",", ""))
        return petaflop * 1e15 * STEPS / RATE / 3600

    return of


@pytest.mark.parametrize("model", NAMES)
def test_every_cure_is_planned_for_the_real_models(project_root, model):
    planner = Planner(load_config(config_with(project_root, "cures.yaml")), read_assets(project_root))
    entry = planner.config.cures[model]
    assert len(entry.experiments) == 19 and len(entry.controls) == 5
    rows = plan_view(planner, "cures", model).rows
    # Accuracy after a forced first thought word, where the chat template leaves it to the model.
    forced = {row["variant"] for row in rows if row.get("variant")}
    assert forced == ({"wait"} if model == "deepseek" else {"think_wait"})
    assert {row["experiment"] for row in rows if row.get("variant")} == set(entry.experiments)
    plain = {row.get("evaluate_artifact") for row in rows if not row.get("variant")}
    config = config_with(project_root, "cures.yaml")
    for name in entry.experiments:
        config["experiments"][name] = {**config["experiments"][name], "variants": []}
    without = plan_view(Planner(load_config(config), read_assets(project_root)), "cures", model).rows
    assert plain == {row.get("evaluate_artifact") for row in without}
    arms = [planner.experiments[name] for name in entry.experiments]
    assert {arm.entry.model for arm in arms} == {model} and {arm.seeds for arm in arms} == {(0, 1, 2)}
    assert {arm.train.steps for arm in arms} == {STEPS}
    assert len({planner.train(name, 0).id for name in entry.experiments}) == 19


@pytest.mark.parametrize("model", NAMES)
def test_the_page_has_the_gpu_hours_that_estimate_gives(project_root, hours, model):
    grpo, sdpo = (hours(f"cures_{model}_{arm}", "cures.yaml") for arm in ("grpo", "sdpo"))
    (row,) = re.findall(rf"^\| {NAMES[model]} \|(.+)\|$", (project_root / "docs/cures.md").read_text(), re.MULTILINE)
    said = [float(re.sub(r"[^\d.]", "", cell)) for cell in row.split("|")]
    assert said == [round(grpo), round(sdpo), pytest.approx(sdpo * 19 * 3, rel=0.02)]


def wait_planner(root: Path, assets=None) -> Planner:
    return Planner(load_config(config_with(root, "wait.yaml")), assets or recorded(root))


def test_the_arms_about_wait_differ_in_what_the_teacher_reads_and_in_the_divergence_alone(project_root):
    planner = wait_planner(project_root)
    first = planner.train("wait_sdpo", 0)
    changed = {
        name: {change.field.removeprefix("params.") for change in diff(first.frozen_spec, node.frozen_spec)}
        for name in planner.config.reports["wait_deepseek"].experiments
        for node in [planner.train(name, 0)]
    }
    of_forward = {"method.name", "method.alpha", "method.top_k", "method.add_tail", "method.entry_clip"}
    assert changed.pop("wait_sdpo") == set()
    for name in ("wait_sdpo_nothink", "wait_reference", "wait_none"):
        assert changed.pop(name) == {"method.context"}
    forward, both = changed.pop("wait_forward"), changed.pop("wait_forward_reference")
    assert both - forward == {"method.context"} and forward <= both
    assert {"method.name", "method.entry_clip"} <= forward and all(field.startswith("method.") for field in forward)
    assert not of_forward - forward - {"method.sampled_token"}
    assert "optimiser.learning_rate" in changed.pop("wait_grpo") and not changed
    assert planner.experiments["wait_reference"].method.context == "reference"
    data = first.inputs["prompts"].inputs["problems"].spec
    assert (
        data.source.fields.solution == "solution" and data.source.pin.repo == "agentica-org/DeepScaleR-Preview-Dataset"
    )
    assert set(first.inputs["model"].slug.split("-")) >= {"deepseek", "r1", "distill", "7b"}


def test_nothing_is_planned_before_the_file_with_the_problems_is_recorded(project_root):
    planner = wait_planner(project_root, read_assets(project_root))
    with pytest.raises(
        UserError, match=r"deepscaler_preview.*lists no files.*selfdistill assets fetch deepscaler_preview"
    ):
        planner.train("wait_sdpo", 0)


def test_the_page_has_the_gpu_hours_of_the_experiment_about_wait(project_root, hours):
    arms = config_with(project_root, "wait.yaml")["reports"]["wait_deepseek"]["experiments"]
    total = 3 * sum(hours(arm, "wait.yaml") for arm in arms)
    (runs, said) = re.search(
        r"these (\d+) runs take ([\d,]+) GPU hours", (project_root / "docs/cures.md").read_text()
    ).groups()
    assert int(runs) == 3 * len(arms)
    assert float(said.replace(",", "")) == pytest.approx(total, rel=0.02)
