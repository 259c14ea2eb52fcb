"""An experiment is exported and imported elsewhere: Snakemake has nothing to do, and the crate is valid."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import venv
from pathlib import Path

import pytest
import rocrate
import zstandard

from workflow_helpers import TARGET
from workflow_project import Project


def test_after_an_import_on_a_fresh_clone_there_is_nothing_to_do(finished, project_root, tmp_path):
    finished.cli("export", "toy_grpo", str(tmp_path / "study.tar.zst"))
    fresh = Project.create(tmp_path / "fresh", project_root)
    assert "11 artifacts imported" in fresh.cli("import", str(tmp_path / "study.tar.zst"))
    assert "Nothing to be done" in fresh.run("-n", TARGET)
    assert (fresh.root / TARGET).read_bytes() == (finished.root / TARGET).read_bytes()
    assert " 0 problems" in fresh.cli("verify")


@pytest.mark.slow
def test_the_crate_is_accepted_by_the_validator(finished, tmp_path):
    """The validator needs other versions of libraries than this project, so it gets an environment of its own."""
    finished.cli("export", "toy_grpo", str(tmp_path / "study.tar.zst"))
    content = zstandard.ZstdDecompressor().stream_reader((tmp_path / "study.tar.zst").read_bytes()).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(tmp_path / "crate", filter="data")
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    programs = tmp_path / "venv/bin"
    subprocess.run([programs / "pip", "install", "--quiet", "roc-validator==0.13.0"], check=True, env=environment)
    context = Path(rocrate.__file__).parent / "data/ro-crate.jsonld"
    for profile in ("ro-crate-1.1", "workflow-run-crate-0.5"):
        command = [programs / "python", Path(__file__).with_name("validate_crate.py"), context, "-y", "validate",
                   "--no-paging", "--profile-identifier", profile, "--requirement-severity", "REQUIRED",
                   tmp_path / "crate"]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"RO-Crate is a valid {profile}" in done.stdout
