"""What the Snakemake workflow catalogue expects, and what a reader of the README is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from workflow_helpers import TARGET
from workflow_project import Project

EDGE = re.compile(r"^\s*(\w+) --> (\w+)$", re.MULTILINE)


@pytest.fixture
def fresh(tmp_path: Path, project_root: Path) -> Project:
    """The shipped project without results."""
    project = Project.create(tmp_path / "project", project_root)
    (project.root / "config/config.yaml").write_bytes((project_root / "config/config.yaml").read_bytes())
    return project


def stdout_of(project: Project, *arguments: str) -> str:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=project.root, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_readme_shows_the_rulegraph(fresh, project_root):
    drawn = stdout_of(fresh, "--rulegraph", "mermaid-js")
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]$", drawn, re.MULTILINE))
    edges = {(names[a], names[b]) for a, b in EDGE.findall(drawn)}
    block = re.search(r"```mermaid\n(.*?)```", (project_root / "README.md").read_text(), re.DOTALL)
    assert block, "README.md has no mermaid block"
    assert set(EDGE.findall(block[1])) == {edge for edge in edges if "default" not in edge}
    labelled = set(re.findall(r"^\s*(\w+)\[", block[1], re.MULTILINE))
    assert labelled == set(names.values()) - {"default"}


def test_both_snakefiles_plan_the_same_jobs(fresh):
    def jobs(*arguments: str) -> str:
        output = fresh.run("-n", *arguments)
        return re.search(r"Job stats:\n.*?total +\d+", output, re.DOTALL)[0].replace("default", "all    ")

    assert jobs("--snakefile", "workflow/Snakefile").split() == jobs().split()


def test_the_catalogue_finds_what_it_reads(project_root):
    usage = yaml.safe_load((project_root / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["report"] is True
    assert set(usage["software-stack-deployment"].values()) == {False}
    for path in re.findall(r"`([\w.]+\.yaml)`", (project_root / "config/README.md").read_text()):
        assert path == "assets.local.yaml" or (project_root / "config" / path).is_file(), path


def test_snakemakes_own_report_holds_the_tables(project):
    project.run("--report", "snakemake-report.html", TARGET)
    page = (project.root / "snakemake-report.html").read_text()
    assert TARGET in page
    assert "results/plans/ood/toy_grpo" in page, "the caption of the table"
