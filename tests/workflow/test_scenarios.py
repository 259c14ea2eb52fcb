"""What users do to a study, on the real workflow: what is computed again, and what is not."""

from __future__ import annotations

import json
import os
import shutil
import time

import pandas as pd
import pytest
import yaml
from safetensors import safe_open

from workflow_helpers import TARGET, set_learning_rate

EVALUATED = {"train": 1, "evaluate": 1, "epistemics": 1}


def test_first_run_makes_the_table(finished):
    table = pd.read_csv(finished.root / TARGET)
    assert set(table["step"]) == {0, 4}
    assert {"all", "id"} <= set(table["family"])
    assert set(table["train_artifact"].str.split("/").str[0]) == {"train", "pretrain"}
    assert all(
        (finished.root / "results/artifacts" / name / "manifest.json").is_file() for name in table["evaluate_artifact"]
    )


def test_a_second_run_has_nothing_to_do(project, stages_computed):
    output = project.run(TARGET)
    assert "Nothing to be done" in output
    assert stages_computed() == {}


def test_a_changed_learning_rate_retrains_and_changing_back_reuses(project, stages_computed):
    table = (project.root / TARGET).read_text()
    project.edit(set_learning_rate(1e-3))
    project.run(TARGET)
    assert stages_computed() == EVALUATED
    changed = (project.root / TARGET).read_text()
    assert changed != table
    project.edit(set_learning_rate(2e-4))
    project.run(TARGET)
    assert stages_computed() == EVALUATED
    assert (project.root / TARGET).read_text() == table


def test_an_added_benchmark_is_only_evaluated(project, stages_computed):
    def add(config):
        config["experiments"]["toy_grpo"]["benchmarks"].append("toy_ood")

    project.edit(add)
    project.run(TARGET)
    assert stages_computed() == {"prompts": 1, "evaluate": 2, "epistemics": 2}


def test_two_experiments_share_what_they_have_in_common(project, stages_computed):
    project.run("results/ood/toy_sdpo.csv")
    assert stages_computed() == EVALUATED


def test_a_changed_runtime_setting_changes_nothing(project, stages_computed):
    path = project.root / "config/runtime.yaml"
    path.write_text(path.read_text().replace("micro_batch_tokens: 16384", "micro_batch_tokens: 512"))
    assert "Nothing to be done" in project.run(TARGET)
    assert stages_computed() == {}


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_sharded_processes_train_adapters_and_look_at_a_benchmark(project, stages_computed, launcher):
    def change(config):
        options = {"evaluation": {"benchmark": "toy_id", "every_steps": 2, "limit": 5}, "lora": {"rank": 4}}
        config["experiments"]["toy_grpo"]["overrides"] = options

    project.edit(change)
    runtime = project.root / "config/runtime.yaml"
    settings = {"processes": 2, "sharding": "full", "profile_step": 3}
    if launcher == "accelerate":
        settings["accelerate_config"] = "config/accelerate/gpu4.yaml"
    runtime.write_text(yaml.safe_dump({"stages": {"train": {"settings": settings}}}))
    project.run(TARGET)
    assert stages_computed() == EVALUATED
    trained = project.root / "results/artifacts" / pd.read_csv(project.root / TARGET)["train_artifact"].iloc[-1]
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "evaluation_avg_at_k" in line] == [2, 4]
    assert (trained / "profile/step-3.json.gz").is_file()
    names = safe_open(trained / "payload/checkpoints/step-4/model.safetensors", "np").keys()
    assert "model.layers.0.self_attn.q_proj.weight" in names and not any("lora" in name for name in names)


def test_lost_snakemake_metadata_reruns_nothing(project, stages_computed):
    shutil.rmtree(project.root / ".snakemake")
    assert "Nothing to be done" in project.run(TARGET)
    assert stages_computed() == {}


def test_touched_files_retrain_nothing(project, stages_computed):
    later = time.time() + 5
    for path in project.root.glob("results/artifacts/*/*/*"):
        os.utime(path, (later, later))
    project.run(TARGET)
    assert stages_computed() == {}


def test_a_lost_manifest_is_restored_from_the_seal(project, stages_computed):
    before = project.manifests()
    for path in project.root.glob("results/artifacts/train/*/manifest.json"):
        path.unlink()
    (project.root / TARGET).unlink()
    project.run(TARGET)
    assert stages_computed() == {}
    assert project.manifests() == before


def test_a_deleted_parent_is_made_again_without_retraining(project, stages_computed):
    for path in project.artifacts("sample") + project.artifacts("prompts"):
        shutil.rmtree(path)
    project.run(TARGET)
    computed = stages_computed()
    assert "train" not in computed and "evaluate" not in computed
    assert "Nothing to be done" in project.run(TARGET)


def test_a_tampered_spec_stops_with_one_line(project):
    spec = project.artifacts("train")[0] / "spec.json"
    spec.write_text(spec.read_text().replace('"seed": 0', '"seed": 1'))
    output = project.run(TARGET, expect=2)
    assert "differs from the spec" in output
    assert "Traceback" not in output


def test_unknown_targets_and_settings_stop_with_one_line(project):
    output = project.run("results/ood/toy_gpro.csv", expect=2)
    assert "unknown experiment `toy_gpro`. Did you mean `toy_grpo`?" in output
    assert "Traceback" not in output
    project.edit(lambda config: config["experiments"]["toy_grpo"].update(seedz=[1]))
    output = project.run(TARGET, expect=2)
    assert "unknown key `experiments.toy_grpo.seedz`" in output
    assert "Traceback" not in output


def test_explain_names_the_changed_field(project):
    assert "Nothing would be computed" in project.cli("explain", "toy_grpo")
    project.edit(set_learning_rate(1e-3))
    output = project.cli("explain", "toy_grpo")
    assert "optimiser.learning_rate: 0.0002 -> 0.001" in output


def without_grpo(config):
    """No experiment of the toy makes the training of toy_grpo any more: several may, under other names."""
    others = {name: entry for name, entry in config["experiments"].items() if entry["recipe"] != "toy_grpo"}
    config |= {"experiments": others, "report": {"experiments": ["toy_sdpo"]}, "reports": {}, "diagnostics": {}}


def test_where_verify_discard_and_gc(project, stages_computed):
    train = project.artifacts("train")[0].name
    assert train in project.cli("where", "toy_grpo")
    assert "0 problems" in project.cli("verify")
    payload = next((project.artifacts("train")[0] / "payload").rglob("*.safetensors"))
    payload.write_bytes(payload.read_bytes()[:-1] + b"x")
    assert "has changed" in project.cli("verify", expect=1)
    assert "would discard" in project.cli("discard", train)
    project.cli("discard", train, "--yes")
    project.run(TARGET)
    assert stages_computed() == EVALUATED
    assert "0 problems" in project.cli("verify")
    project.edit(without_grpo)
    removed = project.cli("gc")
    assert train in removed and "pretrain/" not in removed.split("needed by")[0]
    project.cli("gc", "--yes")
    assert project.artifacts("train") == [] and len(project.artifacts("pretrain")) == 1


def test_keys_are_equal_in_two_directories(project, finished):
    names = sorted(json.loads((project.root / "results/plans/ood/toy_grpo/plan.json").read_text())["artifacts"])
    project.run("-n", TARGET)
    assert names == sorted(
        json.loads((finished.root / "results/plans/ood/toy_grpo/plan.json").read_text())["artifacts"]
    )
