"""Archives: written and read as streams, every digest checked, nothing imported unless all of it is right."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from selfdistill.artifacts.store import Artifact, freeze, make_frozen_spec
from selfdistill.artifacts.verification import verify
from selfdistill.exchange import archive, crate
from selfdistill.exchange.selection import Selection
from selfdistill.files import key_of
from selfdistill.schema.errors import UserError

MANIFEST = archive.MANIFEST


def sealed(seed: int, inputs: dict[str, str], files: dict[str, bytes]) -> Artifact:
    spec = make_frozen_spec("sample", {"distinct": 1, "repeats": 1, "seed": seed}, inputs)
    artifact = Artifact(Path("results/artifacts/sample") / f"x-{key_of(spec)}")
    freeze(artifact.folder, spec)
    for name, content in files.items():
        (artifact.payload / name).parent.mkdir(parents=True, exist_ok=True)
        (artifact.payload / name).write_bytes(content)
    artifact.seal({"n": 1})
    attempt = {"started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T04:04:05+00:00", "commit": "c" * 40,
               "user": "someone"}  # fmt: skip
    (artifact.folder / "provenance.json").write_text(json.dumps({"attempts": [attempt]}))
    return artifact


@pytest.fixture
def study(tmp_path, monkeypatch) -> Artifact:
    """A project with a base model, a training and a table; returns the training."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    base = sealed(1, {}, {"model/model.safetensors": os.urandom(5000), "model/config.json": b"{}"})
    trained = {"checkpoints/step-4/model.safetensors": os.urandom(5000), "rollouts/step-1.parquet": os.urandom(5000)}
    training = sealed(2, {"model": base.id}, trained)
    for path, text in (
        ("results/plans/ood/toy/plan.json", json.dumps({"artifacts": [training.name], "rows": []})),
        ("results/ood/toy.csv", "a\n1\n"), ("workflow/Snakefile", "rule all:\n"), ("config/config.yaml", "{}\n"),
    ):  # fmt: skip
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    os.utime("results/ood/toy.csv", (2_000_000_000, 2_000_000_000))
    return training


def export(artifact: Artifact, out: Path = Path("../study.tar.zst"), **options: bool) -> Path:
    chosen = Selection.of([artifact], **{"without_weights": False, "without_rollouts": False} | options)
    archive.write(chosen, out, crate.metadata(chosen, "toy"))
    return out.resolve()


@pytest.fixture
def elsewhere(study, tmp_path, monkeypatch) -> Callable[[], Path]:
    """Change to an empty project."""

    def change() -> Path:
        (tmp_path / "there").mkdir()
        monkeypatch.chdir(tmp_path / "there")
        return tmp_path / "there"

    return change


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_everything_arrives_as_it_was_and_a_second_import_changes_nothing(study, elsewhere, tmp_path):
    path = export(study)
    there = elsewhere()
    done = archive.read(path)
    assert tree(there / "results") == tree(tmp_path / "here/results")
    assert (len(done.added), done.targets) == (2, ["results/ood/toy.csv"])
    assert Path("results/ood/toy.csv").stat().st_mtime == 2_000_000_000
    assert verify(study.folder).problems == []
    before = tree(there)
    again = archive.read(path)
    assert (again.added, len(again.present)) == ([], 2)
    assert tree(there) == before


def opened(path: Path) -> tarfile.TarFile:
    """An archive as other programs read it."""
    return tarfile.open(fileobj=io.BytesIO(zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()))


def test_other_programs_can_read_the_archive(study, tmp_path):
    with opened(export(study)) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    manifest = json.loads((tmp_path / "unpacked" / MANIFEST).read_text())
    assert {*tree(tmp_path / "unpacked")} == {*manifest["files"], MANIFEST}
    assert "project/workflow/Snakefile" in manifest["files"]


def test_a_flipped_byte_anywhere_is_an_error_and_nothing_is_imported(study, elsewhere):
    path = export(study)
    content, there = path.read_bytes(), elsewhere()
    for position in random.Random(0).sample(range(len(content)), 40):
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.Random(position).randrange(8)
        path.write_bytes(damaged)
        try:
            archive.read(path)
        except UserError:
            assert tree(there) == {}
        else:  # Bits that mean nothing, such as padding: what arrived is then right.
            assert tree(there / "results") == tree(there.parent / "here/results")
            shutil.rmtree(there / "results")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_an_archive_that_is_cut_off_is_an_error_and_nothing_is_imported(study, elsewhere, share):
    path = export(study)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    there = elsewhere()
    with pytest.raises(UserError):
        archive.read(path)
    assert tree(there) == {}


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The archive with other content, as one who knows the format could write it."""
    with opened(path) as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar}
    change(files)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(zstandard.ZstdCompressor().compress(buffer.getvalue()))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "results/../../evil"])
def test_an_archive_cannot_write_outside(study, elsewhere, name):
    path = export(study)
    rewritten(path, lambda files: files.update({name: b"x"}))
    there = elsewhere()
    with pytest.raises(UserError, match="which no export writes"):
        archive.read(path)
    assert tree(there) == {} and not (there.parent / "evil").exists()


def test_a_file_more_or_less_than_the_manifest_says_is_named(study, elsewhere):
    path = export(study)
    content, there = path.read_bytes(), elsewhere()
    for change, message in (
        (lambda files: files.pop("results/ood/toy.csv"), "results/ood/toy.csv is missing"),
        (lambda files: files.update({"results/more": b"x"}), "results/more is not in its manifest"),
        (lambda files: files.update({"results/ood/toy.csv": b"b"}), "results/ood/toy.csv differs"),
    ):
        path.write_bytes(content)
        rewritten(path, change)
        with pytest.raises(UserError, match=message):
            archive.read(path)
    assert tree(there) == {}


def test_an_artifact_that_is_here_with_other_content_is_an_error(study, elsewhere):
    path = export(study)
    Path(study.payload / "rollouts/step-1.parquet").write_bytes(b"other rows")
    study.unseal()
    study.payload.mkdir()
    (study.payload / "model.bin").write_bytes(b"x")
    study.seal({"n": 2})
    before = tree(Path("results"))
    with pytest.raises(UserError, match=f"{study.name} is already here with other content.*discard {study.id}"):
        archive.read(path)
    assert tree(Path("results")) == before


def test_a_table_of_ones_own_stays(study):
    path = export(study)
    Path("results/ood/toy.csv").write_text("mine\n")
    assert archive.read(path).kept == ["results/ood/toy.csv"]
    assert Path("results/ood/toy.csv").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("option", "gone"), [("without_weights", "model.safetensors"), ("without_rollouts", "step-1.parquet")]
)
def test_weights_or_rollouts_stay_here_and_are_named(study, elsewhere, option, gone):
    whole, path = export(study).stat().st_size, export(study, Path("../small.tar.zst"), **{option: True})
    assert path.stat().st_size < whole
    there = elsewhere()
    left = archive.read(path).left_out
    assert left and all(name.endswith(gone) for name in left)
    assert not [name for name in tree(there) if name.endswith(gone)]
    assert Artifact(study.folder).is_sealed


def test_what_was_changed_after_it_was_sealed_is_not_exported(study):
    (study.payload / "rollouts/step-1.parquet").write_bytes(os.urandom(5000))
    with pytest.raises(UserError, match=r"step-1.parquet was changed after it was sealed.*Nothing was written"):
        export(study)
    assert not Path("../study.tar.zst").exists()


def test_unfinished_results_are_not_exported(study):
    study.manifest_path.unlink()
    study.seal_path.unlink()
    with pytest.raises(UserError, match="is not finished"):
        export(study)


def test_the_crate_describes_the_run_its_workflow_and_what_was_made_from_what(study):
    graph = json.loads(crate.metadata(Selection.of([study], without_weights=False, without_rollouts=False), "toy"))
    entities = {entity["@id"]: entity for entity in graph["@graph"]}
    root, run = entities["./"], entities["#run"]
    assert root["mainEntity"] == {"@id": "project/workflow/Snakefile"} and run["instrument"] == root["mainEntity"]
    assert "ComputationalWorkflow" in entities["project/workflow/Snakefile"]["@type"]
    assert {"@id": "results/ood/toy.csv"} in run["result"]
    assert (run["startTime"], run["endTime"]) == ("2026-01-02T03:04:05+00:00", "2026-01-02T04:04:05+00:00")
    training = entities[f"{study.folder}/"]
    assert training["isBasedOn"][0]["@id"].startswith(str(study.upstream("model").folder))
