"""The keys of the shipped experiments are pinned: a change of layout, names or classes must not move them.

A key that moves on purpose (a setting of a shipped experiment, a VERSION) is written anew, and the review sees which:

    python tests/unit/test_golden_keys.py
"""

import json
from pathlib import Path

import yaml

from selfdistill.plan.planner import Planner
from selfdistill.plan.settings import load_config
from selfdistill.plan.views import plan_view, view_names
from selfdistill.schema.assets import read_assets

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/keys.json"


def keys_of_views() -> dict[str, list[str]]:
    """`view/name` -> ids of the artifacts it reads; each key holds those of everything upstream."""
    planner = Planner(load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text())), read_assets(ROOT))
    return {
        f"{view}/{name}": sorted(node.id for node in plan_view(planner, view, name).nodes.values())
        for view, names in view_names(planner).items()
        for name in names
    }


def test_the_keys_of_the_shipped_experiments_have_not_moved():
    golden, now = json.loads(GOLDEN.read_text()), keys_of_views()
    assert {name: now.get(name) for name in golden} == golden


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(keys_of_views(), indent=1, sort_keys=True) + "\n")
