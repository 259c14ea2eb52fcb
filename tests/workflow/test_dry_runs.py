"""Plans of the shipped config: what a user reads before anything runs."""

from __future__ import annotations

import shutil

import pytest

from workflow_project import Project


@pytest.fixture
def shipped(tmp_path, project_root) -> Project:
    """The project as it is shipped, without results."""
    project = Project.create(tmp_path / "project", project_root)
    shutil.copy(project_root / "config/config.yaml", project.root / "config/config.yaml")
    return project


def test_the_slurm_profile_plans_the_papers_run_without_a_network(shipped):
    command = [*shipped.command()[:3], "-n", "--profile", "slurm", "results/ood/qwen3_sdpo.csv"]
    process = shipped.start(command=command)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (line,) = [line for line in output.splitlines() if ": Train " in line]
    assert "qwen3-8b-dapo-math-17k-sdpo-solution-seed0" in line
    assert line.endswith("for qwen3_sdpo (4 GPUs, 400 GB, 48 h)")
    assert "Reason:" not in output
    assert "warning: profiles/slurm/config.yaml: slurm_account and slurm_partition are empty" in output


def test_a_dry_run_freezes_specs_and_a_second_one_touches_nothing(shipped):
    shipped.run("-n", "results/ood/toy_sdpo.csv")
    files = {path: path.stat().st_mtime_ns for path in (shipped.root / "results").rglob("*.json")}
    assert sum(path.name == "spec.json" for path in files) > 20
    shipped.run("-n", "results/ood/toy_sdpo.csv")
    assert {path: path.stat().st_mtime_ns for path in (shipped.root / "results").rglob("*.json")} == files
