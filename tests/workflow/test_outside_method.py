"""A fourth method, written outside the package as docs/configuration.md 10 shows it, from the plan to MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from workflow_helpers import shown_files

TABLE = "results/ood/mine_right_only.csv"
OVERLAY = "config/mine.yaml"
METHOD = "my_methods.right_only"


@pytest.fixture
def with_method(project, project_root):
    """The finished project with the files of the page; the report shows the method beside GRPO."""
    files = dict(shown_files(project_root / "docs/configuration.md", section=10))
    assert set(files) == {"my_methods.py", "my_methods_training.py", OVERLAY}
    for name, text in files.items():
        (project.root / name).write_text(text)
    with (project.root / OVERLAY).open("a") as overlay:
        overlay.write("report: {experiments: [toy_grpo, mine_right_only], richness: [], sft: [], coverage: [], ")
        overlay.write("compare: [[toy_grpo, mine_right_only]]}\n")
    return project


def run(project, *targets: str, expect: int = 0, only_plan: bool = False) -> str:
    return project.run(*(["-n"] if only_plan else []), "--configfile", OVERLAY, "--", *targets, expect=expect)


def spec_of(folder: Path) -> dict:
    return json.loads((folder / "spec.json").read_text())["params"]


def test_a_method_from_outside_trains_and_is_shown_everywhere(with_method, stages_computed):
    project = with_method
    run(project, TABLE, "results/curves/mine_right_only.csv", "results/report.html")
    assert stages_computed() == {"train": 1, "evaluate": 1, "epistemics": 1}
    (trained,) = [a for a in project.artifacts("train") if METHOD in a.name]
    assert spec_of(trained)["method"] == {"name": METHOD, "aggregation": "sequence_mean", "threshold": 0.5}
    table = pd.read_csv(project.root / TABLE)
    assert set(table["experiment"]) == {"mine_right_only"} and set(table["step"]) == {0, 4}
    curves = pd.read_csv(project.root / "results/curves/mine_right_only.csv")
    assert curves["loss"].abs().sum() > 0
    page = (project.root / "results/report.html").read_text()
    assert "RIGHT ONLY" in page and "toy_grpo (A) and mine_right_only (B)" in page
    assert "total while updating" in project.cli("estimate", "mine_right_only", "--configfile", OVERLAY)
    project.cli("track")
    assert tagged_methods(project.root) == {"grpo", METHOD}


def tagged_methods(root: Path) -> set[str]:
    """Values of the tag `method` of training runs in the project's store."""
    code = (
        "import mlflow; "
        "runs = mlflow.search_runs(search_all_experiments=True, output_format='list'); "
        "print({r.data.tags.get('method') for r in runs if r.data.tags.get('stage') == 'train'})"
    )
    store = next(root.glob("**/mlflow.db"))
    done = subprocess.run(
        [sys.executable, "-c", f"import mlflow; mlflow.set_tracking_uri('sqlite:///{store}'); {code}"],
        capture_output=True, text=True, check=True, cwd=root,
    )  # fmt: skip
    return eval(done.stdout)


def test_changed_code_of_a_method_is_a_new_run_and_a_comment_is_not(with_method, stages_computed):
    project, training = with_method, with_method.root / "my_methods_training.py"
    run(project, TABLE)
    training.write_text("# A comment.\n" + training.read_text())
    assert "Nothing to be done" in run(project, TABLE)
    training.write_text(training.read_text().replace("-tokens.logprobs", "-2 * tokens.logprobs"))
    assert "method_code: " in project.cli("explain", "mine_right_only", "--configfile", OVERLAY)
    run(project, TABLE)
    assert stages_computed() == {"train": 2, "evaluate": 2, "epistemics": 2}
    first, second = (spec_of(a) for a in project.artifacts("train") if METHOD in a.name)
    assert first["method_code"] != second["method_code"]


def test_a_job_planned_before_the_code_changed_stops_with_one_line(with_method):
    project, training = with_method, with_method.root / "my_methods_training.py"
    run(project, TABLE, only_plan=True)
    (planned,) = [a for a in project.artifacts("train") if METHOD in a.name]
    training.write_text(training.read_text().replace("-tokens.logprobs", "-2 * tokens.logprobs"))
    done = subprocess.run(
        [sys.executable, "-m", "selfdistill.run.launch", "train", str(planned / "manifest.json"), "--log", "log.txt"],
        cwd=project.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"the code of method {METHOD} (my_methods, my_methods_training) has changed" in done.stderr
    assert "Traceback" not in done.stderr


MISTAKES = [
    (OVERLAY, "right_only}", "rihgt_only}", "Did you mean `my_methods.right_only`?"),
    (OVERLAY, "my_methods.", "your_methods.", "importing your_methods failed: ModuleNotFoundError"),
    (OVERLAY, "right_only}", "right_only, threshold: high}", "method.threshold`: Input should be a valid number"),
    ("my_methods.py", "import Field", "import Feild", "importing my_methods failed: ImportError"),
    ("my_methods.py", '"my_methods.right_only"', '"right_only"', "its name must start with its module: `my_methods.`"),
    ("my_methods.py", "(MethodSettings)", "", "RightOnlySettings is not a subclass of MethodSettings"),
    ("my_methods.py", "my_methods_training:", "nowhere:", "there is no Python source of nowhere"),
]


def test_mistakes_stop_the_plan_with_one_line(with_method):
    root = with_method.root
    for name, old, new, message in MISTAKES:
        text = (root / name).read_text()
        assert old in text, old
        (root / name).write_text(text.replace(old, new))
        output = run(with_method, TABLE, expect=2, only_plan=True)
        assert message in output
        assert "Traceback" not in output
        (root / name).write_text(text)
