"""docs/first_hour.md as a stranger walks through it: its commands in its order, with the toy at a few steps.

On the way, the names that MLflow shows: an edit, a dry run, a run and the way back leave each run its own.
"""

from __future__ import annotations

import re
import shlex
import sqlite3
import sys
from pathlib import Path

import pytest

from workflow_helpers import shown_files
from workflow_project import Project

PAGE = Path(__file__).parents[2] / "docs/first_hour.md"
#: Of the reader's shell; `make demo` runs `snakemake --profile local`, as the test does instead of it.
SHELL = {"git", "cd", "make", "."}


def commands(section: int) -> list[str]:
    """The commands of a section, as the page shows them."""
    text = PAGE.read_text().split(f"## {section}.")[1].split("\n## ")[0]
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return [line for line in lines if line.split()[0] in SHELL | {"selfdistill", "snakemake"}]


class Stranger:
    """Types commands of the page into a project."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.typed: list[str] = []

    def type(self, line: str) -> str:
        """The output of a command that must succeed."""
        program, *words = shlex.split(line)
        module = {"selfdistill": "selfdistill.cli", "snakemake": "snakemake"}[program]
        process = self.project.start(command=[sys.executable, "-m", module, *words])
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        assert "Traceback" not in output
        self.typed.append(line)
        return output

    def read(self, section: int) -> list[str]:
        """The outputs of all commands of a section."""
        return [self.type(line) for line in commands(section)]

    def names(self) -> set[str]:
        """Of the training runs in MLflow, brought up to date."""
        self.type("selfdistill track")
        with sqlite3.connect(self.project.root / "results/mlflow/mlflow.db") as store:
            found = store.execute(
                "select r.name from runs r join experiments e using (experiment_id) "
                "where e.name = 'selfdistill training' and r.lifecycle_stage = 'active'"
            )
            return {name for (name,) in found}


def own_file() -> str:
    ((name, text),) = shown_files(PAGE, section=4)
    assert name == "config/hour.yaml"
    return text


def trainings(project: Project) -> set[str]:
    return {path.name for path in project.artifacts("train")}


def test_the_own_experiment_takes_at_most_fifteen_lines():
    assert len(own_file().splitlines()) <= 15


@pytest.mark.slow
def test_a_stranger_reads_compares_and_runs_an_experiment_of_their_own(project):
    project.edit(lambda config: config["report"].update(experiments=["toy_grpo", "toy_sdpo"], richness=[], sft=[],
                                                        coverage=[]))  # fmt: skip
    stranger = Stranger(project)
    assert {line.split()[0] for line in commands(1)} == SHELL
    stranger.type("snakemake --profile local")
    report = project.root / "results/report.html"
    assert "Two experiments compared" in report.read_text()

    (shown,) = stranger.read(2)
    assert "problem" in shown or "No problem of" in shown
    compared, _ = stranger.read(3)
    assert "params.method.name" in compared and "B is" in compared
    assert "Comparison: toy_grpo and toy_sdpo" in (project.root / "pair.html").read_text()

    first = {"toy", "toy_grpo seed 0", "toy_sdpo seed 0"}
    assert stranger.names() == first
    before = trainings(project)
    mine = project.root / "config/hour.yaml"
    mine.write_text(own_file())
    planned, _, compared = stranger.read(4)
    assert re.search(r"^train +1$", planned, re.MULTILINE)
    assert "params.method.teacher" in compared and "one seed" in compared
    (own,) = trainings(project) - before
    page = report.read_text()
    assert "toy_sdpo (A) and hour_ema (B)" in page and "hour_ema" in page.partition("<nav")[0]
    assert stranger.names() == first | {"hour_ema seed 0"}

    mine.write_text(own_file().replace("rate: 0.05", "rate: 0.5"))
    explained, planned, where, lineage = stranger.read(5)
    assert "rate" in explained and "0.05" in explained
    assert re.search(r"^train +1$", planned, re.MULTILINE)
    assert stranger.names() == first | {"hour_ema seed 0"}, "a dry run renamed what was run"
    run = "snakemake --profile local --configfile config/hour.yaml"
    stranger.type(run)
    (other,) = trainings(project) - before - {own}
    values = {"hour_ema seed 0 (rate=0.05)", "hour_ema seed 0 (rate=0.5)"}
    assert stranger.names() == first | values
    done = project.attempts()
    mine.write_text(own_file())
    stranger.type(run)
    assert project.attempts() == done and stranger.names() == first | values
    assert own in stranger.type("selfdistill where hour_ema --configfile config/hour.yaml")
    assert where and lineage and other != own
