"""`like` in entries of the config, and experiments that a `sweep` makes."""

import copy

import pytest

from selfdistill.plan.experiments import resolve
from selfdistill.plan.inheritance import inherit, shared_entries, with_inherited
from selfdistill.plan.settings import load_config
from selfdistill.schema.errors import UserError
from synthetic import CONFIG

GRPO = CONFIG["experiments"]["tiny_grpo"]


def config(**changes):
    return load_config({**copy.deepcopy(CONFIG), **changes})


def with_experiments(**entries):
    return {"experiments": {**CONFIG["experiments"], **entries}}


def test_an_entry_is_as_the_one_that_it_is_like_but_for_what_it_says():
    found = config(**with_experiments(other={"like": "tiny_grpo", "seeds": [7]})).experiments
    same = {"like", "seeds"}
    assert found["other"].model_dump(exclude=same) == found["tiny_grpo"].model_dump(exclude=same)
    assert found["other"].seeds == [7]


def test_bases_may_be_like_others_and_an_entry_may_be_like_a_base_of_its_own_name():
    bases = {"short": {"like": "shorter", "seeds": [3]}, "shorter": {**GRPO, "seeds": [2], "coverage": None}}
    changed = with_experiments(short={"like": "short", "benchmarks": ["exam"]})
    assert config(bases=bases, **changed).experiments["short"].seeds == [3]


@pytest.mark.parametrize(
    ("base", "changes", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"m": {"name": "sdpo", "top_k": 5}}, {"m": {"name": "grpo"}}, {"m": {"name": "grpo"}}),
        ({"m": {"name": "sdpo", "top_k": 5}}, {"m": {"alpha": 1}}, {"m": {"name": "sdpo", "top_k": 5, "alpha": 1}}),
        ({"s": {"kind": "toy", "count": 5}}, {"s": {"kind": "code"}}, {"s": {"kind": "code"}}),
    ],
)  # fmt: skip
def test_mappings_are_merged_unless_they_are_of_another_kind(base, changes, merged):
    assert inherit(base, changes) == merged


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": {"like": "tiny_gpro"}}, "`experiments.a.like`: unknown entry `tiny_gpro`. Did you mean `tiny_grpo`?"),
        ({"a": {"like": "b"}, "b": {"like": "a"}}, "goes in a circle: a -> b -> a"),
        ({"a": {"like": "a"}}, "`experiments.a.like`: unknown entry `a`"),
        ({"a": {"like": "tiny_grpo", "sedes": [1]}}, "unknown key `experiments.a.sedes`. Did you mean `seeds`?"),
        ({"a": {"like": 3}}, "unknown entry"),
    ],
)
def test_mistakes_are_one_line(entries, message):
    with pytest.raises(UserError) as error:
        config(**with_experiments(**entries))
    assert message in str(error.value)


def test_what_is_no_mapping_is_left_to_the_schema():
    assert with_inherited({"experiments": [1], "models": {"a": 3}}) == {"experiments": [1], "models": {"a": 3}}


def test_what_an_edit_of_an_entry_also_changes_is_named():
    found = shared_entries(config(**with_experiments(other={"like": "tiny_grpo", "recipe": "sdpo"})), "tiny_grpo")
    assert found["experiments.tiny_grpo"] == ["other"]
    assert found["models.tiny"] == [name for name in [*CONFIG["experiments"], "other"] if name != "tiny_grpo"]
    assert "recipes.grpo" not in found  # no other experiment uses it
    assert shared_entries(config(), "tiny_grpo_d2") == {}


def test_a_sweep_makes_an_experiment_for_each_combination():
    sweep = {"optimiser.learning_rate": [1.0e-3, 2.0e-6], "group_size": [4]}
    found = resolve(config(**with_experiments(tiny_grpo={**GRPO, "sweep": sweep})))
    first, second = (
        found["tiny_grpo_learning_rate_0_001_group_size_4"],
        found["tiny_grpo_learning_rate_2e_06_group_size_4"],
    )
    assert (first.train.optimiser.learning_rate, second.train.optimiser.learning_rate) == (1.0e-3, 2.0e-6)
    assert second.train.group_size == 4 and second.tuned_from == "tiny_grpo"
    assert second.setting == {"optimiser.learning_rate": 2.0e-6, "group_size": 4}
    assert found["tiny_grpo_d2"].tuned_from is None and "tiny_grpo_learning_rate_0_001_group_size_4_d2" not in found
    same_rate = found["tiny_grpo"].train.optimiser.learning_rate == 1.0e-3
    assert same_rate and found["tiny_grpo"].train.group_size != 4


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"optimiser.learning_rte": [1.0]}, "tiny_grpo.sweep`: with optimiser.learning_rte = 1.0: unknown key"),
        ({"steps": ["a lot"]}, "with steps = 'a lot'"),
        ({"steps": []}, "at least 1 item"),
        ({"steps": [10, 10]}, "holds 10 twice"),
        ({"method.name": ["grpo", "GRPO"]}, "experiments.tiny_grpo.sweep"),
    ],
)  # fmt: skip
def test_mistakes_in_a_sweep_name_it(sweep, message):
    with pytest.raises(UserError) as error:
        resolve(config(**with_experiments(tiny_grpo={**GRPO, "sweep": sweep})))
    assert message in str(error.value)
