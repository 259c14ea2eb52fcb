"""From the shipped config to keys: what moves a key, what does not, and what bad input gets."""

import copy
from collections import Counter

import pytest
import yaml

from selfdistill.artifacts.lineage import closure
from selfdistill.artifacts.store import NAME_PATTERN
from selfdistill.plan.diff import diff
from selfdistill.plan.experiments import resolve
from selfdistill.plan.planner import Planner
from selfdistill.plan.runtime import merged_settings
from selfdistill.plan.settings import load_config
from selfdistill.plan.views import plan_view, view_names
from selfdistill.schema.assets import read_assets
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import RuntimeConfig


@pytest.fixture
def raw(project_root):
    return yaml.safe_load((project_root / "config/config.yaml").read_text())


@pytest.fixture
def assets(project_root):
    return read_assets(project_root)


def nodes(raw, assets, view="ood", name="toy_sdpo"):
    plan = plan_view(Planner(load_config(raw), assets), view, name)
    return {node.name: node for node in closure(plan.nodes.values())}


def changed(raw, assets, change):
    """Stages of the artifacts that a change adds to the plan of toy_sdpo."""
    edited = copy.deepcopy(raw)
    change(edited)
    before, after = nodes(raw, assets), nodes(edited, assets)
    return Counter(after[name].stage for name in after.keys() - before.keys())


def test_every_view_of_the_shipped_config_plans(raw, assets):
    planner = Planner(load_config(raw), assets)
    names = view_names(planner)
    assert {"toy_grpo", "qwen3_sdpo", "toy_sdpo_d8", "smollm2_sdpo"} <= set(names["ood"])
    for view, entries in names.items():
        for name in entries:
            assert plan_view(planner, view, name).rows


def test_the_learning_rate_moves_training_and_what_follows(raw, assets):
    def change(config):
        config["experiments"]["toy_sdpo"]["overrides"] = {"optimiser": {"learning_rate": 1e-3}}

    assert changed(raw, assets, change) == {"train": 3, "evaluate": 6, "epistemics": 6}


def test_a_cache_of_eight_bits_moves_all_that_is_sampled_with_it(raw, assets):
    def planned(**model):
        edited = copy.deepcopy(raw)
        edited["models"]["qwen3"] |= model
        return nodes(edited, assets, name="qwen3_sdpo")

    before, after = planned(), planned(kv_cache_dtype="fp8_e4m3")
    assert planned(kv_cache_dtype="auto").keys() == before.keys()
    moved = {after[name].stage for name in after.keys() - before.keys()}
    assert moved == {"train", "evaluate", "epistemics"}
    assert {node.stage for node in after.values() if "kv_cache_dtype" in str(node.frozen_spec["params"])} == {
        "train",
        "evaluate",
    }


def test_training_on_a_cache_of_eight_bits_needs_the_correction(raw, assets):
    raw["models"]["qwen3"]["kv_cache_dtype"] = "fp8_e4m3"
    raw["experiments"]["qwen3_grpo"]["overrides"] = {"correction_clip": None}
    with pytest.raises(
        UserError, match="qwen3_grpo.overrides.correction_clip`: is null, but model qwen3 has"
    ) as caught:
        Planner(load_config(raw), assets)
    assert "\n" not in str(caught.value)
    raw["models"]["toy"]["kv_cache_dtype"] = "fp8_e4m3"
    with pytest.raises(UserError, match="kv_cache_dtype fp8_e4m3 is for engine vllm; engine torch takes auto"):
        load_config(raw)


def test_a_benchmark_adds_only_its_evaluation(raw, assets):
    def change(config):
        config["datasets"]["toy_more"] = {"source": {"kind": "toy", "families": ["long"], "count": 50, "seed": 5}}
        config["benchmarks"]["toy_more"] = {"dataset": "toy_more", "samples": 1}
        config["experiments"]["toy_sdpo"]["benchmarks"] = ["toy_id", "toy_ood", "toy_more"]

    assert changed(raw, assets, change) == {"dataset": 1, "prompts": 1, "evaluate": 4, "epistemics": 4}


def test_evaluation_while_training_takes_the_benchmarks_settings(raw, assets):
    look = {"benchmark": "toy_ood", "every_steps": 10, "limit": 20}

    def change(config):
        config["benchmarks"]["toy_ood"]["max_tokens"] = 40
        config["experiments"]["toy_sdpo"]["overrides"] = {"evaluation": look, "lora": {"rank": 8}}

    change(raw)
    train = next(node for node in nodes(raw, assets).values() if node.stage == "train")
    assert train.inputs["evaluation_prompts"].slug == "long-mod-sum-192"
    assert train.frozen_spec["params"]["evaluation"] | {"grader": None} == {
        "every_steps": 10, "samples": 1, "limit": 20, "engine": "torch", "seed": 0, "grader": None,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 40},
    }  # fmt: skip
    assert train.frozen_spec["params"]["lora"] == {"rank": 8, "alpha": 32.0, "target_modules": None}


def test_a_seed_adds_only_its_run(raw, assets):
    def change(config):
        config["experiments"]["toy_sdpo"]["seeds"] = [0, 1, 2, 3]

    assert changed(raw, assets, change) == {"train": 1, "evaluate": 2, "epistemics": 2}


def test_names_and_descriptions_of_numbers_do_not_move_keys(raw, assets):
    def change(config):
        config["experiments"]["toy_sdpo"]["overrides"] = {"optimiser": {"learning_rate": "2e-4"}}
        config["recipes"]["toy_sdpo"]["optimiser"] = {"learning_rate": 2.0e-4}

    base = copy.deepcopy(raw)
    base["recipes"]["toy_sdpo"]["optimiser"] = {"learning_rate": 2e-4}
    assert changed(base, assets, change) == {}


def test_renaming_an_experiment_moves_nothing(raw, assets):
    renamed = copy.deepcopy(raw)
    renamed["experiments"]["other_name"] = renamed["experiments"].pop("toy_sdpo")
    renamed["report"]["experiments"].remove("toy_sdpo")
    renamed["diagnostics"]["toy"]["experiments"].remove("toy_sdpo")
    assert nodes(raw, assets).keys() == nodes(renamed, assets, name="other_name").keys()


def test_experiments_share_base_model_prompts_and_base_evaluation(raw, assets):
    grpo, sdpo = nodes(raw, assets, name="toy_grpo"), nodes(raw, assets, name="toy_sdpo")
    shared = Counter(grpo[name].stage for name in grpo.keys() & sdpo.keys())
    assert shared == {"dataset": 3, "pretrain": 1, "prompts": 3, "evaluate": 2, "epistemics": 2}


def test_the_two_sft_arms_share_their_data(raw, assets):
    guided, unguided = (nodes(raw, assets, name=f"toy_sft_{arm}") for arm in ("guided", "unguided"))
    shared = Counter(guided[name].stage for name in guided.keys() & unguided.keys())
    assert shared["sft_data"] == 1 and shared["rollouts"] == 2 and shared["train"] == 0


def test_artifact_names_fit_the_path_grammar(raw, assets):
    import re

    for node in nodes(raw, assets, view="report", name="report").values():
        assert re.fullmatch(NAME_PATTERN, node.name.split("/")[1]), node.name


def test_coverage_experiments_differ_in_their_problems_only(raw, assets):
    experiments = resolve(load_config(raw))
    small, whole = experiments["toy_sdpo_d8"], experiments["toy_sdpo"]
    assert small.train_spec(0) == whole.train_spec(0)
    assert (small.distinct, small.subset, whole.distinct) == (8, 8, None)


def test_a_diff_names_the_field_and_both_values():
    changes = diff({"params": {"lr": 1.0, "a": 1}}, {"params": {"lr": 2.0, "b": 1}})
    assert [(c.field, c.existing, c.planned) for c in changes] == [
        ("params.a", 1, "(absent)"),
        ("params.b", "(absent)", 1),
        ("params.lr", 1.0, 2.0),
    ]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("experiments", "toy_sdpo", "seedz"), [0], r"unknown key `experiments.toy_sdpo.seedz`. Did you mean `seed"),
        (
            ("experiments", "toy_sdpo", "model"),
            "toi",
            r"`experiments.toy_sdpo.model`: unknown model `toi`. Did you mean",
        ),
        (("experiments", "toy_sdpo", "recipe"), "toy_sdop", r"unknown recipe `toy_sdop`. Did you mean `toy_sdpo"),
        (("experiments", "toy_sdpo", "dataset"), "toy", r"unknown data set `toy`"),
        (("experiments", "toy_sdpo", "benchmarks"), ["aime42"], r"unknown benchmark `aime42`. Did you mean `aime2"),
        (("experiments", "toy_sdpo", "evaluate"), [7], r"no checkpoint at step 7. There are: 60"),
        (("experiments", "toy_sdpo", "overrides"), {"optimiser": {"learning_rate": "fast"}}, r"learning_rate.*'fast'"),
        (("experiments", "toy_sdpo", "overrides"), {"optimiser": {"lr": 1}}, r"optimiser.lr"),
        (("experiments", "toy_sdpo", "overrides"), {"method": {"alpha": 2}}, r"alpha.*less than or equal to 1.*2"),
        (("experiments", "toy_sdpo", "overrides"), {"prompts_per_update": 5}, r"multiple of prompts_per_update"),
        (
            ("experiments", "toy_sdpo", "overrides"),
            {"evaluation": {"benchmark": "toy_odd", "every_steps": 5}},
            r"`experiments.toy_sdpo.overrides.evaluation.benchmark`: unknown benchmark `toy_odd`. Did you mean",
        ),
        (("models", "toy", "training_sampling"), {"max_tokens": 96, "top_p": 0.9}, r"top_p 1"),
        (("questions", "plain"), "no slot", r"`questions.plain`: 'no slot' lacks the slot"),
        (("recipes", "toy_sdpo", "method"), {"name": "ppo"}, r"unknown method `ppo`"),
        (("models", "toy", "asset"), "qwen3_8b", r"either `asset` or `pretrain`"),
    ],
)
def test_bad_input_names_field_value_and_way_out(raw, path, value, message):
    place = raw
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(UserError, match=message):
        resolve(load_config(raw))


def test_an_unresolved_asset_says_which_command_resolves_it(raw, assets):
    raw["datasets"]["dapo"]["source"] |= {"asset": "livecodebench", "file": "test6.jsonl"}
    with pytest.raises(UserError, match="selfdistill assets fetch"):
        nodes(raw, assets, name="qwen3_sdpo")


def test_a_data_set_brings_its_wording_and_its_reward(raw, assets):
    planner = Planner(load_config(raw), assets)
    chemistry = planner.train("chemistry_sdpo", 0)
    assert chemistry.spec.on_policy.grader.kind == "choice"
    assert chemistry.inputs["prompts"].spec.question_template == "{question}"
    maths = planner.train("qwen3off_sdpo", 0)
    assert maths.spec.on_policy.grader.scope_characters == 100
    assert "boxed" in maths.inputs["prompts"].spec.question_template
    evaluations = dict(zip(("chemistry_test", "aime24"), ("{question}", "boxed"), strict=True))
    for benchmark, words in evaluations.items():
        assert words in planner.benchmark_prompts("qwen3off_short", benchmark).spec.question_template


def test_programs_are_rewarded_by_half_of_the_tests_and_judged_by_all(raw, assets):
    raw["datasets"]["livecodebench6"]["source"] |= {"asset": "math_evaluation", "file": "aime24.parquet"}
    raw["experiments"]["programs"] = raw["experiments"]["chemistry_sdpo"] | {
        "dataset": "livecodebench6",
        "benchmarks": ["livecodebench6"],
    }
    planner = Planner(load_config(raw), assets)
    trained = planner.train("programs", 0)
    assert (trained.spec.on_policy.grader.kind, trained.spec.on_policy.grader.tests) == ("code", "training")
    evaluated = planner.evaluation("qwen3off_short", trained, [100], "livecodebench6")
    assert (evaluated.spec.grader.kind, evaluated.spec.grader.tests) == ("code", "all")
    assert trained.inputs["prompts"].inputs["problems"].key == evaluated.inputs["prompts"].inputs["problems"].key


def test_a_comparison_moves_the_data_set_and_an_unset_later_field_does_not(raw, assets):
    def compare(config):
        config["datasets"]["toy_train"]["compare"] = ["toy_ood"]

    assert changed(raw, assets, compare)["dataset"] == 1

    def spell_out_defaults(config):
        config["datasets"]["toy_train"] |= {"compare": [], "split": None, "expect": None, "reward": None}

    assert changed(raw, assets, spell_out_defaults) == {}


def test_a_data_set_that_names_what_is_not_there_is_one_error(raw, assets):
    for key, value, message in (
        ("compare", ["toy_odd"], "`datasets.toy_train.compare`: unknown data set `toy_odd`. Did you mean `toy_ood`"),
        ("question", "plian", "`datasets.toy_train.question`: unknown question template `plian`. Did you mean `plain`"),
    ):
        edited = copy.deepcopy(raw)
        edited["datasets"]["toy_train"][key] = value
        with pytest.raises(UserError) as error:
            load_config(edited)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("stage", "settings", "gpus"),
    [
        ("train", {"processes": 4}, 4),
        ("train", {"processes": 4, "tensor_parallel": 2}, 4),
        ("train", {"tensor_parallel": 2}, 2),
        ("evaluate", {"tensor_parallel": 4}, 4),
        ("prompts", {}, 0),
    ],
)
def test_a_job_that_takes_more_gpus_than_it_asks_for_is_an_error(stage, settings, gpus):
    def runtime(asked):
        entry = {"settings": {"device": "cuda", **settings}, "resources": {"gpus": asked}}
        return RuntimeConfig.model_validate({"models": {"m": {stage: entry}}})

    assert merged_settings(runtime(gpus), stage, "m")[1].gpus == gpus
    if gpus:
        with pytest.raises(UserError, match=f"{stage} of m uses {gpus} GPUs .* set its resources.gpus to {gpus}"):
            merged_settings(runtime(gpus - 1), stage, "m")


def test_training_processes_are_divided_among_engines_without_a_rest():
    def merged(**settings):
        entry = {"settings": {"device": "cuda", **settings}, "resources": {"gpus": 8}}
        return merged_settings(RuntimeConfig.model_validate({"models": {"m": {"train": entry}}}), "train", "m")[0]

    assert merged(processes=4, tensor_parallel=2).tensor_parallel == 2
    assert merged(processes=1, tensor_parallel=2).tensor_parallel == 2
    with pytest.raises(UserError, match="train of m: 6 training processes cannot share engines of tensor_parallel = 4"):
        merged(processes=6, tensor_parallel=4)


@pytest.mark.parametrize(
    ("stage", "settings", "graders"),
    [("train", {"processes": 4}, 4), ("evaluate", {"processes": 4}, 16), ("train", {"grader_processes": 3}, 3)],
)
def test_graders_use_the_cores_that_a_job_has(stage, settings, graders):
    entry = {"settings": {"device": "cuda", **settings}, "resources": {"gpus": 4, "cpus": 16}}
    runtime = RuntimeConfig.model_validate({"models": {"m": {stage: entry}}})
    assert merged_settings(runtime, stage, "m")[0].grader_processes == graders
