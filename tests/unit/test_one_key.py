"""One behaviour has one key: names, order, repeats and spellings that change nothing change no key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfdistill.artifacts.store import make_frozen_spec
from selfdistill.epistemic import PAPER_WORDS, in_canonical_order
from selfdistill.files import key_of
from selfdistill.plan.planner import Planner
from selfdistill.plan.settings import load_config
from selfdistill.plan.views import plan_view, view_names
from selfdistill.schema.assets import AssetLock, read_assets
from selfdistill.schema.common import Optimiser
from selfdistill.schema.sources import ReasoningGymSource
from selfdistill.schema.stages import DatasetSpec
from small_specs import small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


@pytest.fixture(scope="module")
def assets() -> AssetLock:
    return read_assets(ROOT)


def keys(config: dict[str, Any], assets: AssetLock) -> dict[str, str]:
    """Key of every node that a table of the toy study reads, by its place in the table."""
    planner = Planner(load_config(config), assets)
    views = [(view, name) for view, names in view_names(planner).items() for name in names if name.startswith("toy")]
    return {
        f"{view}/{name}/{role}": node.id
        for view, name in views
        for role, node in plan_view(planner, view, name).nodes.items()
    }


def renamed(value: Any, names: dict[str, str]) -> Any:
    """A config with other names of data sets, wherever they stand."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def test_names_of_data_sets_change_no_key(shipped: dict[str, Any], assets: AssetLock) -> None:
    """New names in the opposite order of the alphabet."""
    old = sorted(shipped["datasets"])
    names = {name: f"set_{len(old) - place:03d}" for place, name in enumerate(old)}
    parts = ("datasets", "benchmarks", "models", "experiments", "richness", "bases")
    config = shipped | {part: copy.deepcopy(shipped[part]) for part in parts}
    config["datasets"] = {names[name]: entry for name, entry in config["datasets"].items()}

    def rename(entry: Any, keys: tuple[str, ...]) -> None:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if key in keys:
                entry[key] = renamed(value, names)
            else:
                rename(value, keys)

    for part in parts:
        rename(config[part], ("dataset", "exclude", "compare", "datasets") + (("like",) if part == "datasets" else ()))
    before, now = Planner(load_config(shipped), assets), Planner(load_config(config), assets)
    pinned = [name for name in old if not name.startswith("livecodebench")]
    assert [now.dataset(names[name]).id for name in pinned] == [before.dataset(name).id for name in pinned]
    assert [now.model(name).id for name in shipped["models"] if "toy" in name] == [
        before.model(name).id for name in shipped["models"] if "toy" in name
    ]
    for name, experiment in before.experiments.items():
        if name.startswith("toy"):
            assert now.train(name, 0).id == before.train(name, 0).id, experiment


def test_a_data_set_that_is_excluded_under_two_names_is_excluded_once(
    shipped: dict[str, Any], assets: AssetLock
) -> None:
    config = copy.deepcopy(shipped)
    config["datasets"]["same_as_toy_id"] = config["datasets"]["toy_id"]
    config["datasets"]["toy_train"]["exclude"] = ["same_as_toy_id", "toy_ood", "toy_id"]
    node = Planner(load_config(config), assets).dataset("toy_train")
    assert node.id == Planner(load_config(shipped), assets).dataset("toy_train").id


def test_the_order_and_case_of_a_lexicon_change_no_key(shipped: dict[str, Any], assets: AssetLock) -> None:
    config = shipped | {"lexicon": [word.upper() for word in reversed(shipped["lexicon"])]}
    assert keys(config, assets) == keys(shipped, assets)
    assert in_canonical_order(["so", "Wait", "check", "wait", "eh"]) == ["wait", "check", "eh", "so"]
    assert in_canonical_order(reversed(PAPER_WORDS)) == list(PAPER_WORDS)


def test_a_checkpoint_interval_above_the_steps_is_the_steps(shipped: dict[str, Any], assets: AssetLock) -> None:
    def trained(**changes: Any) -> str:
        config = copy.deepcopy(shipped)
        config["recipes"]["toy_grpo"] |= {"steps": 7} | changes
        config["experiments"]["toy_grpo"]["evaluate"] = "last"
        return Planner(load_config(config), assets).train("toy_grpo", 0).id

    look = {"benchmark": "toy_id", "samples": 1}
    assert trained(checkpoint_every=7) == trained(checkpoint_every=8) == trained(checkpoint_every=1000)
    assert trained(checkpoint_every=6) != trained(checkpoint_every=7)
    ends = [trained(checkpoint_every=7, evaluation=look | {"every_steps": every}) for every in (6, 7, 8)]
    assert ends[0] != ends[1] == ends[2]


def spec_key(source: ReasoningGymSource) -> str:
    return key_of(make_frozen_spec("dataset", small(DatasetSpec, source=source).identity(), {}))


@pytest.mark.parametrize(
    "spellings", [(2, 2.0, "2", "2.0"), (0.5, "0.5", "5e-1"), (0, -0.0, "0"), ([1, 2], [1.0, 2.0])]
)
def test_a_number_has_one_key_however_it_is_written(spellings: tuple[Any, ...]) -> None:
    made = {spec_key(ReasoningGymSource(task="x", count=1, options={"option": value})) for value in spellings}
    assert len(made) == 1


@pytest.mark.parametrize("kept", ["01", "+", "2a", True, ["2", "+"], "nan", "-"])
def test_what_is_no_number_stays(kept: Any) -> None:
    found = ReasoningGymSource(task="x", count=1, options={"option": kept}).identity()["options"]["option"]
    assert found == kept and type(found) is type(kept)


def test_zero_has_one_sign() -> None:
    made = [Optimiser(learning_rate="1e-5", weight_decay=zero).identity() for zero in (0, 0.0, -0.0, "-0")]
    assert len({str(identity) for identity in made}) == 1
