"""Artifact directories: write-once specs, seals, tampering, verification."""

import errno
import json
import os
from pathlib import Path

import pytest

from power_cut import Disk
from selfdistill.artifacts.store import Artifact, find, freeze, make_frozen_spec, slugify
from selfdistill.artifacts.verification import changed_content, changed_inputs
from selfdistill.files import key_of, write_atomically, write_if_changed
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import SampleSpec
from small_specs import small


def make(root, stage="sample", params=None, inputs=None, files=("problems.parquet",)):
    spec = make_frozen_spec(stage, params or {"distinct": 8, "repeats": 1, "seed": 0}, inputs or {})
    folder = root / stage / f"x-{key_of(spec)}"
    freeze(folder, spec)
    artifact = Artifact.open(folder)
    for name in files:
        (artifact.payload / name).parent.mkdir(parents=True, exist_ok=True)
        (artifact.payload / name).write_text(f"content of {name}")
    return artifact


def content_problems(artifact):
    return [*changed_content(artifact), *changed_inputs(artifact)]


def test_a_spec_is_written_once(tmp_path):
    artifact = make(tmp_path)
    before = (artifact.folder / "spec.json").stat().st_mtime_ns
    freeze(artifact.folder, artifact.frozen_spec)
    assert (artifact.folder / "spec.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="differs from the spec"):
        freeze(artifact.folder, artifact.frozen_spec | {"version": 99})


def test_a_tampered_spec_is_an_error(tmp_path):
    artifact = make(tmp_path)
    path = artifact.folder / "spec.json"
    path.write_text(path.read_text().replace('"distinct": 8', '"distinct": 9'))
    with pytest.raises(UserError, match="changed after planning"):
        Artifact.open(artifact.folder)


def test_a_spec_reads_back_as_its_model(tmp_path):
    assert make(tmp_path).spec(SampleSpec) == small(SampleSpec, distinct=8)


def test_an_unsealed_artifact_cannot_be_read(tmp_path):
    upstream = make(tmp_path)
    reader = make(tmp_path, inputs={"problems": f"sample/{upstream.key}"})
    with pytest.raises(UserError, match="is not finished"):
        reader.input("problems")
    upstream.seal({"problems": 8})
    assert reader.input("problems").summary == {"problems": 8}


def test_the_manifest_names_every_file_and_nothing_of_the_machine(tmp_path):
    artifact = make(tmp_path, files=("problems.parquet", "deep/er.txt"))
    artifact.seal({})
    manifest = json.loads(artifact.manifest_path.read_text())
    assert sorted(manifest["files"]) == ["payload/deep/er.txt", "payload/problems.parquet"]
    assert sorted(manifest) == ["files", "format", "inputs", "key", "stage", "summary"]
    assert manifest["files"]["payload/deep/er.txt"]["size"] == len("content of deep/er.txt")


def test_sealing_twice_gives_the_same_bytes(tmp_path):
    one, two = make(tmp_path / "a"), make(tmp_path / "b")
    one.seal({"n": 1})
    two.seal({"n": 1})
    assert one.manifest_path.read_bytes() == two.manifest_path.read_bytes()


def test_an_empty_payload_cannot_be_sealed(tmp_path):
    with pytest.raises(RuntimeError, match="nothing to seal"):
        make(tmp_path, files=()).seal({})


def test_a_lost_manifest_is_restored_from_the_seal(tmp_path):
    artifact = make(tmp_path)
    artifact.seal({"n": 1})
    content = artifact.manifest_path.read_bytes()
    artifact.manifest_path.unlink()
    assert Artifact.open(artifact.folder).restore()
    assert artifact.manifest_path.read_bytes() == content


@pytest.mark.parametrize("damage", ["missing", "shorter", "seal"])
def test_a_damaged_payload_is_never_restored(tmp_path, damage):
    artifact = make(tmp_path)
    artifact.seal({})
    artifact.manifest_path.unlink()
    payload = artifact.payload / "problems.parquet"
    if damage == "missing":
        payload.unlink()
    elif damage == "shorter":
        payload.write_text("x")
    else:
        artifact.seal_path.write_text(artifact.seal_path.read_text()[:-20])
    assert not Artifact.open(artifact.folder).restore()
    assert not artifact.is_sealed


def test_verify_finds_changed_missing_and_extra_files(tmp_path):
    artifact = make(tmp_path, files=("a", "b"))
    artifact.seal({})
    assert content_problems(artifact) == []
    (artifact.payload / "a").write_text("CONTENT of a")
    (artifact.payload / "b").unlink()
    (artifact.payload / "c").write_text("new")
    problems = " ".join(content_problems(artifact))
    assert "payload/a has changed" in problems
    assert "payload/b is missing" in problems
    assert "payload/c is not in the manifest" in problems


def test_verify_reports_an_earlier_realisation_of_an_input(tmp_path):
    upstream = make(tmp_path)
    upstream.seal({})
    reader = make(tmp_path, inputs={"problems": f"sample/{upstream.key}"})
    reader.seal({})
    assert content_problems(reader) == []
    upstream.unseal()
    assert "is gone" in content_problems(reader)[0]
    upstream.payload.mkdir()
    (upstream.payload / "problems.parquet").write_text("other bits")
    upstream.seal({})
    assert "built from an earlier realisation" in content_problems(reader)[0]


def test_a_manifest_of_another_artifact_is_refused(tmp_path):
    one, two = make(tmp_path), make(tmp_path, params={"distinct": 9, "repeats": 1, "seed": 0})
    one.seal({})
    two.manifest_path.write_bytes(one.manifest_path.read_bytes())
    with pytest.raises(UserError, match="belongs to another artifact"):
        _ = two.manifest


def test_two_directories_of_one_key_are_an_error(tmp_path):
    artifact = make(tmp_path)
    (tmp_path / "sample" / f"y-{artifact.key}").mkdir()
    with pytest.raises(UserError, match="two directories"):
        find(f"sample/{artifact.key}", tmp_path)


def test_slugs_are_short_and_safe():
    assert slugify("Qwen3-8B on AIME/24!") == "qwen3-8b-on-aime-24"
    assert len(slugify("x" * 200)) == 60
    assert slugify("///") == "x"


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selfdistill.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_unchanged_content_keeps_its_time_stamp(tmp_path):
    path = tmp_path / "f"
    assert write_if_changed(path, "a")
    before = path.stat().st_mtime_ns
    assert not write_if_changed(path, "a")
    assert path.stat().st_mtime_ns == before


def test_what_a_manifest_vouches_for_is_on_disk_before_it(tmp_path, monkeypatch):
    artifact = make(tmp_path, files=("problems.parquet", "deep/er.txt"))
    artifact.metrics.write_text("{}\n")
    disk, named = Disk(monkeypatch), []

    def before_rename(target: Path) -> None:
        assert disk.lost(artifact.payload, artifact.metrics) == []
        named.append(target.name)

    disk.before_rename = before_rename
    artifact.seal({})
    assert named == [".sealed.json", "manifest.json"]
    assert disk.lost(artifact.manifest_path, artifact.seal_path) == []


def test_a_payload_that_the_disk_does_not_take_is_not_sealed(tmp_path, monkeypatch):
    artifact, fsync = make(tmp_path), os.fsync

    def broken(descriptor: int) -> None:
        if "/payload/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        artifact.seal({})
    assert not artifact.is_sealed and not artifact.seal_path.exists()


@pytest.mark.parametrize(
    "damaged", ["train0a1b2c3d4e5f", "train/", "train/**", "../0a1b2c3d4e5f", "train/x/0a1b2c3d4e5f", ""]
)
def test_a_damaged_id_finds_nothing(tmp_path, damaged):
    (tmp_path / "train" / "x-0a1b2c3d4e5f").mkdir(parents=True)
    assert find("train/0a1b2c3d4e5f", tmp_path) is not None
    assert find(damaged, tmp_path) is None
