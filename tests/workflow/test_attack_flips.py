"""One flipped bit anywhere in the results of a finished project is found by verify."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfdistill.artifacts.pins import check_pins, pin
from selfdistill.artifacts.store import all_artifacts
from selfdistill.artifacts.verification import verify
from selfdistill.plan.config_files import ConfigFiles
from selfdistill.plan.made_views import check_views
from selfdistill.plan.used_configs import check_used_configs, record_used_config
from selfdistill.plan.workspace import PLANS
from workflow_helpers import TARGET

pytestmark = pytest.mark.attack
FLIPS = 2500
#: What nothing is read from but by people, and what is made anew for every run: docs/security.md says so.
NOT_VOUCHED_FOR = ("log.txt", ".lock", ".written-default.json", "mlflow.db")


def kinds(root: Path) -> dict[str, list[Path]]:
    """The files of results by kind: stage and name, numbers left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name not in NOT_VOUCHED_FOR and path.stat().st_size:
            parts = path.relative_to(root).parts
            kind = "/".join(parts[:2] + parts[3:]) if parts[0] == "artifacts" else "/".join(parts)
            found.setdefault("".join("N" if c.isdigit() else c for c in kind), []).append(path)
    return found


def places(path: Path, draw: random.Random) -> Iterator[tuple[int, int]]:
    """(byte, bit), without end."""
    size = path.stat().st_size
    while True:
        yield draw.randrange(size), draw.randrange(8)


def finder(root: Path, path: Path) -> Callable[[], bool]:
    """Whether damage to this file is found."""
    parts = path.relative_to(root).parts
    if path.name in ("pins.json", "configs.json"):
        return lambda: bool([*check_pins(), *check_used_configs()])
    if parts[0] != "artifacts":
        return lambda: bool(list(check_views(PLANS)))
    return lambda: bool(verify(root / Path(*parts[:3])).problems)


def test_no_flipped_bit_in_results_is_silent(project, monkeypatch):
    project.run(TARGET, "results/epistemic/toy_grpo.csv", "results/curves/toy_grpo.csv")
    monkeypatch.chdir(project.root)
    root = Path("results")
    pin({artifact.id: artifact.name for artifact in all_artifacts()[:3]}, "paper")
    record_used_config(ConfigFiles(["config/mine.yaml"], {"seeds": [1]}))
    assert not list(check_views(PLANS))
    files = kinds(root)
    assert len(files) > 30, sorted(files)
    draw, flips, silent = random.Random(15), Counter(), []
    for kind, paths in files.items():
        path = draw.choice(paths)
        is_found, intact = finder(root, path), path.read_bytes()
        for (place, bit), _ in zip(places(path, draw), range(-(-FLIPS // len(files))), strict=False):
            path.write_bytes(intact[:place] + bytes([intact[place] ^ 1 << bit]) + intact[place + 1 :])
            flips[kind] += 1
            if not is_found():
                silent.append(f"{path}: bit {bit} of byte {place}")
            path.write_bytes(intact)
        assert not verify(root / Path(*path.parts[1:4])).problems if path.parts[1] == "artifacts" else True
    assert not silent, f"{len(silent)} of {flips.total()}: {silent[:10]}"
    assert flips.total() >= 2000, flips
    assert project.cli("verify").endswith("0 problems.\n")
