"""SFT entries: from problems with a solve rate in a range, and with a system text of their own."""

from __future__ import annotations

import pytest
import yaml

from selfdistill.plan.planner import Planner
from selfdistill.plan.settings import load_config
from selfdistill.schema.assets import read_assets
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import SftDataSpec
from selfdistill.stages.sft_data import within_solve_rates

RATES = {"never": 0.0, "once": 0.125, "half": 0.5, "often": 0.625, "always": 1.0}


def test_problems_solved_one_to_four_times_of_eight_are_kept():
    spec = SftDataSpec(limit=None, min_solve_rate=0.125, max_solve_rate=0.5)
    assert within_solve_rates(list(RATES), RATES, spec) == ["once", "half"]
    assert within_solve_rates(list(RATES), RATES, SftDataSpec(limit=None)) == list(RATES)
    with pytest.raises(UserError, match="none of 2 problems solved both ways has a solve rate between 0.125 and 0.5"):
        within_solve_rates(["often", "always"], RATES, spec)


def sft_node(project_root, **settings):
    raw = yaml.safe_load((project_root / "config/config.yaml").read_text(encoding="utf-8"))
    name = "toy_sft_guided"
    raw["experiments"][name]["sft"] = settings
    return Planner(load_config(raw), read_assets(project_root)).sft_data(name)


def test_a_system_text_is_in_the_training_prompts_and_not_in_those_that_are_sampled(project_root):
    plain, own = sft_node(project_root), sft_node(project_root, system="Box the answer.")
    assert own.inputs["prompts"].spec.system == "Box the answer."
    assert own.inputs["unguided"].key == plain.inputs["unguided"].key
    assert own.key != plain.key
    bounds = sft_node(project_root, min_solve_rate=0.125, max_solve_rate=0.5)
    assert (bounds.spec.min_solve_rate, bounds.spec.max_solve_rate) == (0.125, 0.5)
    assert "min_solve_rate" not in plain.spec.identity()
