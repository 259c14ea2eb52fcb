"""Everything is checked before anything runs: numbers, names, limits that depend on each other."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import selfdistill.schema
from selfdistill.plan.config_files import ConfigFiles
from selfdistill.plan.runtime import load_runtime, merged_settings
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.base import Model
from selfdistill.schema.errors import UserError
from selfdistill.schema.yaml_file import read_yaml


@pytest.fixture
def config(project_root, monkeypatch) -> dict[str, Any]:
    monkeypatch.chdir(project_root)
    return copy.deepcopy(read_yaml(Path("config/config.yaml")))


def put(config, path, value):
    for key in path[:-1]:
        config = config[key] if isinstance(config, list) else config.setdefault(key, {})
    config[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("recipes.toy_grpo.steps", True, "`recipes.toy_grpo`: steps must be a number, not true"),
        ("experiments.toy_grpo.seeds", [0, True], "`experiments.toy_grpo`: seeds must be a number, not true"),
        ("datasets.toy_id.source.count", False, "count must be a number, not false"),
        ("recipes.toy_grpo.method", {"name": "grpo", "clip_low": True}, "clip_low must be a number, not true"),
        ("experiments.toy_grpo.overrides", {"steps": True}, "overrides`: steps must be a number, not true"),
        ("experiments.toy_grpo.coverage", {"distinct": [0]}, "`experiments.toy_grpo.coverage.distinct.0`: Input"),
        ("experiments.toy_grpo.coverage", {"distinct": [-3]}, "greater than 0 (found -3)"),
        ("experiments.toy_grpo.coverage", {"distinct": [8, 8]}, "holds 8 twice"),
        ("experiments.toy_grpo.seeds", [-1], "`experiments.toy_grpo.seeds.0`: Input should be greater"),
        ("experiments.toy_grpo.seeds", [0, 0], "`experiments.toy_grpo.seeds`: holds 0 twice"),
        ("experiments.toy_grpo.benchmarks", ["toy_id", "toy_id"], "holds toy_id twice"),
        ("recipes.toy_grpo.optimiser.betas", [0.9, 1.5], "`recipes.toy_grpo.optimiser.betas.1`: Input should be less"),
        ("richness.toy.min_solve_rate", 0.9, "min_solve_rate (0.9) is above max_solve_rate (0.5)"),
        ("models.toy.training_sampling.max_tokens", 9999,
         "`models.toy`: training_sampling.max_tokens (9999) and max_prompt_tokens (160) together exceed max_positions"),
        ("models.toy.evaluation_sampling.max_tokens", 400, "evaluation_sampling.max_tokens (400) and max_prompt"),
        ("experiments.toy_grpo.evaluate", [], "at least 1 item"),
        ("experiments.toy_grpo.evaluate", [6, 6], "holds 6 twice"),
        ("recipes.toy_grpo.method", {}, "`recipes.toy_grpo.method.name`: is missing"),
        ("recipes.toy_grpo.steps", 10**9, "steps (1000000000) and checkpoint_every (60) make more than 10,000 checkp"),
        ("recipes.toy_grpo.steps", 10**30, "steps must be a number of at most 64 bits"),
        ("recipes.toy_grpo.draw", "x" * 5000, "... (5002 characters)"),
        ("datasets.toy_id.exclude", ["toy_id"], "toy_id.exclude`: a data set cannot depend on itself"),
        ("datasets.toy_id.compare", ["toy_train"], "cannot depend on itself: toy_"),
        ("datasets.toy_train.exclude", ["toy_id", "toy_id"], "`datasets.toy_train.exclude`: holds toy_id twice"),
        ("experiments.toy_grpo.model", "", "`experiments.toy_grpo.model`: unknown model `''`"),
        ("models.toy.max_positions", 1024, "max_positions (1024) is above pretrain.architecture.max_positions (512)"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_before_anything_runs(config, path, value, message):
    put(config, path.split("."), value)
    with pytest.raises(UserError) as raised:
        Workspace(config).check()
    assert message in str(raised.value)
    assert "``" not in str(raised.value)


@pytest.mark.parametrize("dataset", ["toy_ood", "a_part"])
def test_a_benchmark_of_another_distribution_cannot_hold_the_problems_trained_on(config, dataset):
    config["datasets"]["a_part"] = config["datasets"]["toy_ood"] | {"limit": 5}
    config["experiments"]["toy_grpo"]["dataset"] = dataset
    config["report"] = {}
    with pytest.raises(
        UserError, match="`experiments.toy_grpo.benchmarks`: toy_ood holds the problems .*domain` to `in`"
    ):
        Workspace(config).check()
    config["benchmarks"]["toy_ood"]["domain"] = "in"
    Workspace(config).check()


@pytest.mark.parametrize("section", ["experiments", "datasets", "models", "recipes", "benchmarks", "questions"])
@pytest.mark.parametrize(
    ("name", "proposal"), [("my one", "my_one"), ("a/b", "a_b"), ("Qwen-3", "qwen_3"), ("8b", "x_8b")]
)
def test_a_name_that_no_target_can_have_is_refused_with_one_that_works(config, section, name, proposal):
    config[section][name] = next(iter(config[section].values()))
    with pytest.raises(UserError, match=f"`{section}.{name}`: a name has .* Write `{proposal}`"):
        Workspace(config).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: {settings: {threads: true}}", "`defaults.settings`: threads must be a number, not true"),
        ("defaults: {settings: {thread: 2}}", "unknown key `defaults.settings.thread`. Did you mean `threads`?"),
        (
            "models: {m: {train: {settings: {separate_samplers: 1}}}}",
            "`models.m.train.settings`: separate_samplers was removed: training processes take turns in sampling and "
            "training. Leave it out; for a model that needs several GPUs to sample, set tensor_parallel.",
        ),
        ("stages: {train: {resources: {gpus: -1}}}", "`stages.train.resources.gpus`: Input should be greater than"),
        ("stages: {training: {}}", "`stages`: unknown stage `training`. Did you mean `train`?"),
        ("models: {toy: {evaluation: {}}}", "`models.toy`: unknown stage `evaluation`. Did you mean `evaluate`?"),
    ],
)
def test_every_entry_of_the_runtime_file_is_checked(tmp_path, text, message):
    path = tmp_path / "runtime.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_runtime(str(path))
    assert str(raised.value).startswith(f"{path}: ") and message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {qwen3: {}}", "`models`: unknown model `qwen3`. Did you mean `qwen3-"),
        ("models: {qwen3_8b: {}}", "`models`: unknown model `qwen3_8b`. Did you mean `qwen3-8b`?"),
        ("models: {toy: {train: {settings: {device: cuda}}}}", "train of toy uses 1 GPUs"),
    ],
)
def test_the_runtime_file_must_fit_the_models_of_the_config(tmp_path, config, text, message):
    path = tmp_path / "runtime.yaml"
    path.write_text(text)
    config["runtime_file"] = str(path)
    with pytest.raises(UserError) as raised:
        Workspace(config).check()
    assert message in str(raised.value)


def test_the_runtime_file_may_name_a_model_whose_asset_the_config_has_exchanged(config):
    for name in ("qwen3", "qwen3off"):
        config["models"][name]["asset"] = "qwen3_1_7b"
    workspace = Workspace(config)
    assert "qwen3-8b" in workspace.runtime.models
    workspace.check()


def test_a_runtime_file_that_is_a_folder_is_one_line(tmp_path, config):
    config["runtime_file"] = str(tmp_path)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        Workspace(config).check()


def test_a_number_as_runtime_file_is_one_line(config):
    config["runtime_file"] = 5
    with pytest.raises(UserError, match="`runtime_file`: .*string"):
        Workspace(config).check()


def test_an_entry_of_the_report_is_reported_with_its_file(config):
    config["report"]["experiments"] = ["toy_grop"]
    with pytest.raises(UserError, match="^config/config.yaml: `report.experiments`: unknown experiment `toy_grop`"):
        Workspace(config).plan("report", "report")


def test_less_memory_for_a_retry_than_for_the_job_is_refused(tmp_path, config):
    (tmp_path / "runtime.yaml").write_text("defaults: {resources: {mem_mb: 5000, max_mem_mb: 4000}}")
    config["runtime_file"] = str(tmp_path / "runtime.yaml")
    with pytest.raises(UserError, match=rf"^{tmp_path}/runtime.yaml: .* max_mem_mb \(4000\) is below mem_mb \(5000\)"):
        merged_settings(load_runtime(config["runtime_file"]), "train", "toy")


#: Numbers that may be anything: options of a foreign library, rewards.
#: Options of a library, config.json of a model, and rewards of any scale.
UNBOUNDED = {"config", "engine_options", "options", "success_threshold"}


def settings_models() -> Iterator[type[Model]]:
    for found in pkgutil.walk_packages(selfdistill.schema.__path__, "selfdistill.schema."):
        module = importlib.import_module(found.name)
        for member in vars(module).values():
            if inspect.isclass(member) and issubclass(member, Model) and member.__module__ == module.__name__:
                yield member


def numbers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield schema
        for key, part in schema.items():
            if key != "$defs":
                yield from numbers(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from numbers(part)


def test_every_number_has_a_bound():
    unbounded = {
        field
        for model in settings_models()
        for field, schema in model.model_json_schema().get("properties", {}).items()
        for number in numbers(schema)
        if not {"minimum", "exclusiveMinimum", "enum", "const"} & number.keys()
    }
    assert unbounded == UNBOUNDED


@pytest.mark.parametrize(
    ("overlay", "line"),
    [
        ("recipes: {toy_grpo: {steps: -1}}", "mine.yaml: `recipes.toy_grpo.steps`: Input should be greater than 0"),
        ("experiments: {toy_grpo: {recipe: toy_grop}}", "mine.yaml: `experiments.toy_grpo.recipe`: unknown recipe"),
        ("experiments: {toy_grpo: {overrides: {stpes: 3}}}", "mine.yaml: unknown key `experiments.toy_grpo.overrides"),
        ("report: {experiments: [toy_grpo]}", None),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_of_the_file_that_holds_it(config, tmp_path, monkeypatch, overlay, line):
    shutil.copytree("config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(overlay)
    files = ConfigFiles(["mine.yaml"])
    if line is None:
        config["recipes"]["toy_grpo"]["steps"] = -1
        Path("config/config.yaml").write_text(yaml.safe_dump(config))
        line = "config/config.yaml: `recipes.toy_grpo.steps`"
    with pytest.raises(UserError) as raised:
        Workspace(files.merged(), files=files).check()
    assert all(found.startswith((line, "config/config.yaml: ")) for found in str(raised.value).splitlines())
    assert str(raised.value).splitlines()[0].startswith(line)


def test_a_value_of_the_command_line_is_reported_as_such(config):
    files = ConfigFiles(values={"lexicon": ["wait", "Wait"]})
    with pytest.raises(UserError, match="^--config: `lexicon`: a word is listed twice"):
        Workspace(config | {"lexicon": ["wait", "Wait"]}, files=files).check()


def test_an_option_of_a_method_is_reported_where_it_is_set(config):
    config["recipes"]["toy_sdpo"]["method"]["alpha"] = 2
    with pytest.raises(UserError, match="`recipes.toy_sdpo.method.alpha`: Input should be less"):
        Workspace(config).check()
    config["recipes"]["toy_sdpo"]["method"]["alpha"] = 1
    config["experiments"]["toy_sdpo"]["overrides"] = {"method": {"alpha": 3}}
    with pytest.raises(UserError, match="`experiments.toy_sdpo.overrides.method.alpha`: Input should be less"):
        Workspace(config).check()


def test_the_longest_completion_of_a_benchmark_fits_the_models_that_run_it(config):
    config["benchmarks"]["toy_id"]["max_tokens"] = 400
    with pytest.raises(UserError, match=r"`benchmarks.toy_id.max_tokens`: max_tokens \(400\) and max_prompt_tokens"):
        Workspace(config).check()


def test_the_shipped_files_pass(config):
    Workspace(config).check()
    assert yaml.safe_load(Path("config/runtime.yaml").read_text())
