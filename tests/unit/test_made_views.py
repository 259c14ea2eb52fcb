"""A table says which plan it shows: neither clocks nor lost records of Snakemake can pass one off as another."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from selfdistill.artifacts.store import all_artifacts
from selfdistill.files import write_atomically
from selfdistill.plan import made_views, view_plan
from selfdistill.plan.made_views import check_views
from selfdistill.plan.workspace import PLANS, Workspace
from selfdistill.views.__main__ import main
from synthetic import CONFIG, build_study
from test_views import behaviour, scalars, view_arguments

TABLE = Path("results/ood/tiny_grpo.csv")


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Path:
    """A study with one table."""
    monkeypatch.chdir(tmp_path)
    plan = build_study("ood", "tiny_grpo", behaviour, scalars)
    main(view_arguments(plan, str(TABLE)))
    return plan


def problems() -> list[str]:
    return list(check_views(PLANS))


def is_due(plan: Path) -> bool:
    """As Snakemake sees it by time stamps alone."""
    return TABLE.stat().st_mtime < plan.stat().st_mtime


def changed() -> dict:
    config = copy.deepcopy(CONFIG)
    config["recipes"]["grpo"]["optimiser"]["learning_rate"] = 5e-4
    return config


def test_a_table_as_it_was_made_has_no_problem_and_is_not_due(plan):
    assert problems() == []
    Workspace(CONFIG).view_inputs("ood", "tiny_grpo")
    assert not is_due(plan)


def test_a_table_made_with_the_clock_ahead_is_due_after_a_change_of_the_config(plan):
    tomorrow = time.time() + 86400
    os.utime(TABLE, (tomorrow, tomorrow))
    Workspace(changed()).view_inputs("ood", "tiny_grpo")
    assert is_due(plan)
    (problem,) = problems()
    assert problem.startswith(f"{TABLE} shows another plan than {plan}")
    Workspace(CONFIG).view_inputs("ood", "tiny_grpo")
    assert problems() == [], "the old plan is back, and the table shows it"


def test_a_table_of_results_that_were_made_again_is_due(plan):
    artifact = next(a for a in all_artifacts() if a.stage == "evaluate")
    manifest = artifact.manifest_path
    write_atomically(manifest, manifest.read_text() + "\n")
    os.utime(manifest, (1000, 1000))
    assert "was made from other results" in problems()[0]
    Workspace(CONFIG).view_inputs("ood", "tiny_grpo")
    assert is_due(plan)
    # Snakemake looks at the content of what is newer: the plan's is as before.
    assert TABLE.stat().st_mtime < manifest.stat().st_mtime


def test_a_table_of_another_version_of_the_code_is_due(plan, monkeypatch):
    monkeypatch.setattr(view_plan, "code_of_views", lambda: "another")
    Workspace(CONFIG).view_inputs("ood", "tiny_grpo")
    assert is_due(plan)
    assert problems()[0].startswith(f"{TABLE} shows another plan than {plan}")


def test_code_of_views_counts_statements_and_templates_and_not_comments(tmp_path, monkeypatch):
    package = tmp_path / "selfdistill"
    shutil.copytree(made_views._PACKAGE, package)
    monkeypatch.setattr(made_views, "_PACKAGE", package)

    def code_after(path: str, change: Callable[[str], str]) -> str:
        file = package / path
        file.write_text(change(file.read_text()))
        return made_views.code_of_views.__wrapped__()

    before = made_views.code_of_views.__wrapped__()
    assert code_after("views/scores.py", lambda text: "# a comment\n" + text) == before
    found = {
        code_after("seeds.py", lambda text: text.replace("LEVEL = 0.95", "LEVEL = 0.9")),
        code_after("views/templates/report.css", lambda text: text + "\n"),
    }
    assert len(found | {before}) == 3


def test_code_of_views_is_found_once_and_kept(tmp_path, monkeypatch):
    package = tmp_path / "selfdistill"
    shutil.copytree(made_views._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(made_views, "_PACKAGE", package)
    found = made_views.code_of_views.__wrapped__()
    (kept,) = package.rglob("__pycache__/made_views.*.json")
    kept.write_text(kept.read_text()[:-5])
    assert made_views.code_of_views.__wrapped__() == found, "a damaged one is found anew"
    monkeypatch.setattr(made_views, "source_digests", None)
    assert made_views.code_of_views.__wrapped__() == found

    monkeypatch.undo()
    monkeypatch.setattr(made_views, "_PACKAGE", package)
    kept.unlink()
    monkeypatch.setattr(made_views, "write_atomically", _read_only)
    assert made_views.code_of_views.__wrapped__() == found, "the package may be read-only"


def _read_only(*arguments, **options):
    raise PermissionError(13, "Permission denied")


def test_no_flipped_bit_of_a_table_its_plan_or_its_record_is_silent(plan):
    for path in (TABLE, plan, plan.with_name("made-results_ood_tiny_grpo.csv.json")):
        intact = path.read_bytes()
        for place in range(0, len(intact), 1 + len(intact) // 300):
            path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
            assert len(problems()) == 1, f"{path}, byte {place}"
        path.write_bytes(intact)
    assert problems() == []


def test_a_removed_table_and_one_without_a_record_are_no_problem(plan):
    plan.with_name("made-results_ood_tiny_grpo.csv.json").unlink()
    assert problems() == []
    Workspace(changed()).view_inputs("ood", "tiny_grpo")
    assert problems() == []
    main(view_arguments(build_study("ood", "tiny_grpo", behaviour, scalars), str(TABLE)))
    TABLE.unlink()
    assert problems() == []


def test_a_log_that_cannot_be_written_is_one_line(plan, capsys):
    Path("logs/x.log").unlink()
    Path("logs/x.log").mkdir()
    with pytest.raises(SystemExit) as raised:
        main(view_arguments(plan, str(TABLE)))
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: logs/x.log cannot be written: Is a directory."
