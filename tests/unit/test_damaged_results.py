"""Results that are damaged, linked to or read-only: the commands say so in one line, and name the file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfdistill.artifacts.store import Artifact, freeze, make_frozen_spec
from selfdistill.artifacts.verification import changed_inputs
from selfdistill.cli import main
from selfdistill.files import key_of
from selfdistill.schema.errors import UserError


def sealed(root: Path, distinct: int = 8) -> Artifact:
    spec = make_frozen_spec("sample", {"distinct": distinct, "repeats": 1, "seed": 0}, {})
    folder = root / "results/artifacts/sample" / f"x-{key_of(spec)}"
    freeze(folder, spec)
    artifact = Artifact.open(folder)
    artifact.payload.mkdir()
    (artifact.payload / "problems.parquet").write_text("problems")
    artifact.seal({"problems": distinct})
    return artifact


@pytest.fixture
def project(tmp_path, project_root, monkeypatch) -> Path:
    shutil.copytree(project_root / "config", tmp_path / "config")
    shutil.copy(project_root / "stages.lock.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["selfdistill", *arguments])
        with pytest.raises(SystemExit) as raised:
            main()
        captured = capsys.readouterr()
        return int(raised.value.code or 0), captured.out, captured.err

    return call


def not_utf8(text: str) -> bytes:
    return text.replace("sample", "s\xe9mple").encode("latin-1")


DAMAGES = {
    "no UTF-8": not_utf8,
    "no JSON": lambda text: text[:-20].encode(),
    "nested deeply": lambda text: b"[" * 200_000,
    "another shape": lambda text: b"[1, 2]",
    "no files": lambda text: text.replace('"files"', '"fils"').encode(),
    "a size that is no number": lambda text: text.replace('"size": 8', '"size": "8"').encode(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_a_damaged_manifest_and_checks_the_others(project, cli, damage):
    damaged, intact = sealed(project), sealed(project, 16)
    damaged.manifest_path.write_bytes(DAMAGES[damage](damaged.manifest_path.read_text()))
    (intact.payload / "problems.parquet").write_text("others")
    code, output, _ = cli("verify")
    assert code == 1
    assert f"{damaged.manifest_path.relative_to(project)} is damaged" in output
    assert f"{intact.name}: payload/problems.parquet has changed" in output


def test_verify_names_the_artifact_whose_input_has_a_damaged_manifest(project):
    upstream = sealed(project)
    spec = make_frozen_spec("sample", {"distinct": 4, "repeats": 1, "seed": 0}, {"problems": upstream.id})
    folder = project / "results/artifacts/sample" / f"y-{key_of(spec)}"
    freeze(folder, spec)
    artifact = Artifact.open(folder)
    artifact.payload.mkdir()
    (artifact.payload / "x").write_text("x")
    artifact.seal({})
    upstream.manifest_path.write_bytes(not_utf8(upstream.manifest_path.read_text()))
    assert any("earlier realisation of problems" in problem for problem in changed_inputs(Artifact.open(folder)))


@pytest.mark.parametrize("damage", ["no UTF-8", "no JSON", "nested deeply", "another shape"])
def test_a_damaged_spec_is_one_line_that_does_not_advise_to_delete(project, damage):
    artifact = sealed(project)
    path = artifact.folder / "spec.json"
    spec = json.loads(path.read_text())
    path.write_bytes(DAMAGES[damage](path.read_text()))
    for use in (lambda: Artifact.open(artifact.folder), lambda: freeze(artifact.folder, spec)):
        with pytest.raises(UserError, match=r"spec.json (is damaged|differs|was changed)") as raised:
            use()
        assert "rm " not in str(raised.value)


@pytest.mark.parametrize("plan", [b"\xff", b"[]", b'{"artifacts": 3, "rows": []}'])
def test_a_damaged_plan_of_a_table_is_one_line(project, cli, plan):
    artifact = sealed(project)
    path = project / "results/plans/ood/x/plan.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(plan)
    (project / "results/ood").mkdir()
    (project / "results/ood/x.csv").write_text("a\n")
    code, _, errors = cli("discard", artifact.key)
    assert code == 2
    assert errors == "error: results/plans/ood/x/plan.json is damaged: plan it again with snakemake -n TARGET.\n"


@pytest.mark.parametrize("command", [("gc", "--yes"), ("discard", "--yes")])
def test_an_artifact_that_is_a_link_loses_the_link_or_the_result_and_nothing_else(project, cli, command):
    artifact = sealed(project)
    elsewhere = project / "elsewhere"
    artifact.folder.rename(elsewhere)
    artifact.folder.symlink_to(elsewhere)
    (elsewhere / "payload").rename(project / "payload")
    (elsewhere / "payload").symlink_to(project / "payload")
    code, _, errors = cli(*command, *([artifact.key] if command[0] == "discard" else []))
    assert (code, errors) == (0, "")
    assert (project / "payload/problems.parquet").is_file()
    assert artifact.folder.exists() == (command[0] == "discard") and not artifact.is_sealed
    assert (elsewhere / "spec.json").is_file()


#: Takes from root the right to write where permissions forbid it.
AS_ANYONE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write everywhere")
@pytest.mark.parametrize("command", ["gc --yes", "discard --yes KEY", "track"])
def test_results_that_may_not_be_written_are_one_line(project, command):
    artifact = sealed(project)
    folders = [project / "results", *(path for path in (project / "results").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    words = [sys.executable, "-m", "selfdistill.cli", *command.replace("KEY", artifact.key).split()]
    done = subprocess.run([*(AS_ANYONE if os.geteuid() == 0 else ()), *words], capture_output=True, text=True)
    for folder in folders:
        folder.chmod(0o755)
    assert done.returncode == 2
    assert re.match(r"error: \S*results/", done.stderr) and done.stderr.count("\n") == 1
    assert "cannot be read or written: Permission denied" in done.stderr
