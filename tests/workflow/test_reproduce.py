"""`selfdistill reproduce`: recorded artifacts made again by Snakemake from the recorded commit, and compared."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from workflow_helpers import TARGET
from workflow_project import Project


@pytest.fixture
def checkout(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that is a checkout with a copy of the package, a changed module and a new file."""
    project = Project.create(tmp_path / "project", project_root)
    shutil.copytree(project_root / "src", project.root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(project_root / ".gitignore", project.root)
    for command in ("init -q", "config user.name a", "config user.email a@b", "add -A", "commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=project.root, check=True)
    with (project.root / "src/selfdistill/toy/problems.py").open("a") as file:
        file.write("# changed\n")
    (project.root / "mine.py").write_text("x = 1\n")
    # The checkout's own package runs, as after `pip install -e .`; another one would be refused.
    monkeypatch.setenv("PYTHONPATH", str(project.root / "src"))
    return project


def test_problems_are_made_again_from_the_recorded_commit_and_its_changes(checkout):
    checkout.run("-n", TARGET)
    artifact = checkout.artifacts("dataset")[0]
    checkout.run(str(artifact.relative_to(checkout.root) / "manifest.json"))
    (checkout.root / "mine.py").unlink()
    before = {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()}
    output = checkout.cli("reproduce", artifact.name[-12:])
    assert "with the recorded commit" in output and "with its changes" in output
    assert "artifacts are equal, byte for byte" in output
    scratch = checkout.root / "results/reproduced" / artifact.name[-12:]
    assert (scratch / "mine.py").is_file() and "# changed" in (scratch / "src/selfdistill/toy/problems.py").read_text()
    again = json.loads((scratch / f"results/artifacts/dataset/{artifact.name}/provenance.json").read_text())
    recorded = json.loads((artifact / "provenance.json").read_text())
    assert [a["attempts"][-1]["commit"] for a in (again, recorded)] == [recorded["attempts"][-1]["commit"]] * 2
    assert {path: path.read_bytes() for path in before} == before
    (payload,) = [path for path in artifact.glob("payload/*") if path.suffix == ".parquet"]
    content = bytearray(payload.read_bytes())
    content[len(content) // 2] ^= 1
    payload.write_bytes(content)
    output = checkout.cli("reproduce", artifact.name[-12:], expect=1)
    assert f"payload/{payload.name} differs (the recorded file was changed after it was sealed" in output


@pytest.mark.slow
def test_a_training_with_its_base_model_is_made_again_byte_for_byte(project):
    (training,) = project.artifacts("train")
    output = project.cli("reproduce", training.name[-12:], "--present-code")
    assert "6 artifacts are equal, byte for byte" in output
    assert "Code, libraries, hardware, data: the same." in output
