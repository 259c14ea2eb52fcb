"""verify sees every damage to a finished artifact: payload, manifest, seal, spec and the record of its attempts."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from selfdistill.artifacts.lineage import last_attempt, provenance_path, read_attempts
from selfdistill.artifacts.provenance import Provenance, record_discard
from selfdistill.artifacts.store import ROOT, Artifact, freeze, make_frozen_spec
from selfdistill.artifacts.verification import is_finished, verify
from selfdistill.cli import app
from selfdistill.files import key_of, pretty_json
from selfdistill.schema.runtime import StageRuntime

SIDECARS = ("spec.json", "manifest.json", ".sealed.json", "provenance.json")


def attempt(artifact, *, seal=True):
    """One attempt at an artifact, as the launcher makes it."""
    provenance = Provenance.start(artifact, StageRuntime())
    artifact.payload.mkdir(exist_ok=True)
    (artifact.payload / "problems.parquet").write_text("problems")
    if seal:
        artifact.seal({"problems": 8}, provenance.will_seal)
    provenance.finish(sealed=seal)


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """A finished artifact that nothing was made from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("{}")
    spec = make_frozen_spec("sample", {"distinct": 8, "repeats": 1, "seed": 0}, {})
    folder = ROOT / "sample" / f"x-{key_of(spec)}"
    freeze(folder, spec)
    attempt(Artifact.open(folder))
    return Artifact.open(folder)


def problems(artifact):
    return " ".join(verify(artifact.folder).problems)


def command(code):
    done = CliRunner().invoke(app, ["verify"], env={"COLUMNS": "300"})
    assert done.exit_code == code
    return done.output


def test_an_intact_artifact_has_no_problems_and_nothing_unchecked(artifact):
    findings = verify(artifact.folder)
    assert (findings.problems, findings.unchecked) == ([], [])
    assert command(0) == "1 artifacts verified, 0 problems.\n"


@pytest.mark.parametrize("name", [*SIDECARS, "payload/problems.parquet"])
def test_no_flipped_bit_is_silent(artifact, name):
    path = artifact.folder / name
    intact = path.read_bytes()
    for place in range(0, len(intact), 1 + len(intact) // 400):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        assert verify(artifact.folder).problems, f"{name}, byte {place}: {path.read_bytes()[place - 9 : place + 9]}"
    path.write_bytes(intact)
    assert not verify(artifact.folder).problems


@pytest.mark.parametrize("name", SIDECARS)
def test_no_deleted_file_is_silent(artifact, name):
    (artifact.folder / name).unlink()
    assert f"{name} is missing" in command(1)


def test_a_finished_artifact_of_which_manifest_and_seal_were_deleted_still_counts(artifact):
    artifact.manifest_path.unlink()
    artifact.seal_path.unlink()
    assert "manifest.json is missing" in command(1)


def falsify(path):
    path.write_text(path.read_text().replace('"problems": 8', '"problems": 9'))


def test_a_falsified_summary_is_seen_in_manifest_and_seal_and_in_both(artifact):
    falsify(artifact.manifest_path)
    assert "manifest.json is not the one that was written when it was finished" in problems(artifact)
    falsify(artifact.seal_path)
    assert ".sealed.json is not the one that was written" in problems(artifact)


def test_a_falsified_seal_restores_nothing(artifact):
    falsify(artifact.seal_path)
    artifact.manifest_path.unlink()
    assert not Artifact.open(artifact.folder).restore() and not artifact.is_sealed


def test_a_kill_after_the_seal_leaves_one_that_restores(artifact):
    """The digest is on record before the seal is written, so that a kill in between loses nothing."""
    provenance = Provenance(provenance_path(artifact.folder), read_attempts(provenance_path(artifact.folder)))
    provenance.attempts[-1] |= {"finished": None, "sealed": False}
    provenance._write()
    artifact.manifest_path.unlink()
    assert Artifact.open(artifact.folder).restore()
    assert not verify(artifact.folder).problems


@pytest.mark.parametrize("damage", [b"{", b"", b"\xff", b'{"attempts": []}'])
def test_the_next_attempt_keeps_a_damaged_history(artifact, damage):
    path = provenance_path(artifact.folder)
    path.write_bytes(damage)
    attempt(artifact)
    assert path.with_name("provenance.damaged-1.json").read_bytes() == damage
    assert last_attempt(artifact.folder)["damaged_record"] == "provenance.damaged-1.json"
    path.write_bytes(path.read_bytes().replace(b'"host"', b'"hust"'))
    attempt(artifact)
    assert [a.get("damaged_record", "")[-6:] for a in read_attempts(path)] == ["1.json", "2.json"]


def test_an_intact_history_grows(artifact):
    attempt(artifact)
    assert len(read_attempts(provenance_path(artifact.folder))) == 2
    assert not list(artifact.folder.glob("*damaged*"))


def test_what_was_made_before_there_were_digests_is_readable_and_said_to_be_unchecked(artifact):
    old = [{**a} for a in read_attempts(provenance_path(artifact.folder))]
    del old[-1]["manifest"]
    provenance_path(artifact.folder).write_text(pretty_json({"attempts": old}))
    findings = verify(artifact.folder)
    assert findings.problems == [] and len(findings.unchecked) == 2
    assert "1 were made before manifests and provenance had digests" in command(0)
    falsify(artifact.manifest_path)
    assert "manifest.json and .sealed.json differ" in problems(artifact)


def test_a_discarded_artifact_is_not_missed(artifact):
    record_discard(artifact.folder)
    artifact.unseal()
    assert not is_finished(artifact.folder)
    assert command(0) == "0 artifacts verified, 0 problems.\n"
    assert json.loads(provenance_path(artifact.folder).read_text())["attempts"][-1]["discarded"]


def test_libraries_that_decide_results_are_recorded(artifact):
    libraries = last_attempt(artifact.folder)["libraries"]
    assert {"torch", "transformers", "math-verify", "sympy", "reasoning-gym"} <= libraries.keys()


def test_leftovers_of_a_removed_artifact_are_named(artifact):
    """As of a job that went on after its folder was removed."""
    shutil.rmtree(artifact.folder)
    artifact.payload.mkdir(parents=True)
    assert "spec.json is missing" in command(1)
