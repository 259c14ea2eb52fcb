"""Archives: written and read as streams, every digest checked, nothing imported unless all of it is right."""

from __future__ import annotations

import hashlib
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

from selfdistill.artifacts import trash
from selfdistill.artifacts.lock import hold_lock, lock_path
from selfdistill.artifacts.store import Artifact, freeze, make_frozen_spec
from selfdistill.artifacts.verification import verify
from selfdistill.exchange import archive, crate
from selfdistill.exchange.selection import Selection
from selfdistill.files import key_of, pretty_json
from selfdistill.plan.made_views import record_view
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


@pytest.mark.parametrize("option", ["without_weights", "without_rollouts"])
def test_what_was_imported_without_some_files_is_exported_without_them_alone(study, elsewhere, option):
    path = export(study, **{option: True})
    elsewhere()
    archive.read(path)
    flag = "--" + option.replace("_", "-")
    with pytest.raises(UserError, match=f"is missing.*export without it, too: {flag}. .*Nothing was written"):
        export(study, Path("again.tar.zst"))
    assert not Path("again.tar.zst").exists()
    again = opened(export(study, Path("again.tar.zst"), **{option: True})).getnames()
    assert set(again) == {name for name in opened(path).getnames() if not name.startswith("project/")}


def test_what_stays_here_is_listed_once_for_all_artifacts(study):
    """Not once for each: with a thousand artifacts the description took minutes."""
    chosen = Selection.of([study], without_weights=True, without_rollouts=True)
    assert chosen.left_out is chosen.left_out and len(chosen.left_out) == 3


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


# --- archives of somebody who means harm ------------------------------------------------------------------------------


def with_manifest(path: Path, change: Callable[[dict, dict[str, bytes]], None]) -> Path:
    """The archive with another manifest, and with more files, of which the manifest has the right digests."""

    def rewrite(files: dict[str, bytes]) -> None:
        manifest = json.loads(files[MANIFEST])
        change(manifest, files)
        if isinstance(manifest.get("files"), dict):
            manifest["files"] |= {
                name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
                for name, content in files.items() if name != MANIFEST
            }  # fmt: skip
        files[MANIFEST] = json.dumps(manifest).encode()

    rewritten(path, rewrite)
    return path


def refused(path: Path, there: Path, message: str) -> None:
    """The import is one error with this message, and nothing is written here or beside it."""
    before = tree(there.parent)
    with pytest.raises(UserError, match=message):
        archive.read(path)
    assert tree(there.parent) == before


@pytest.mark.parametrize(
    "target",
    ["results/../zzz.py", "results/x/../../../zzz.py", "zzz.py", "../zzz.py", "/tmp/zzz.py", "results/pins.json",
     "results/ood/./zzz.csv", "results/ood/" + "z" * 300, "results/ood/a\0b.csv", "results/ood", ""],
)  # fmt: skip
def test_a_target_cannot_lie_outside_of_the_tables(study, elsewhere, target):
    path = export(study)

    def add(manifest, files):
        files["zzz.py"] = b"print()"  # Where `results/../zzz.py` leads to, once it is unpacked.
        manifest["targets"].append(target)

    with_manifest(path, add)
    refused(path, elsewhere(), "`targets` of its manifest holds")


@pytest.mark.parametrize("name", ["results/more.py", "results/ood/other.csv"])
def test_a_file_of_the_archive_that_is_no_table_of_a_plan_is_no_target(study, elsewhere, name):
    def add(manifest, files):
        record = {"output": "results/more.py", "plan": "", "manifests": "", "sha256": ""}
        files["results/more.py"] = files["results/ood/other.csv"] = b"x"
        files["results/plans/ood/toy/made-results_more.py.json"] = pretty_json(record).encode()
        manifest["targets"].append(name)

    path = with_manifest(export(study), add)
    refused(path, elsewhere(), "`targets` of its manifest holds")


@pytest.mark.parametrize(
    "plan", ['{"artifacts": ["train/x-000000000000"], "rows": []}', "[" * 5000, '{"artifacts": [[]], "rows": []}']
)
def test_a_table_of_other_artifacts_is_refused(study, elsewhere, plan):
    path = export(study)
    with_manifest(path, lambda _, files: files.update({"results/plans/ood/toy/plan.json": plan.encode()}))
    refused(path, elsewhere(), "the plan of results/ood/toy.csv is damaged, or names artifacts of elsewhere")


@pytest.mark.parametrize(
    "name", ["../../x-0123456789ab", "nosuch/x-0123456789ab", "sample/x", "sample/x-0123456789ab/payload", ""]
)
def test_an_artifact_has_the_name_of_one(study, elsewhere, name):
    path = export(study)
    with_manifest(path, lambda manifest, _: manifest["artifacts"].append(name))
    refused(path, elsewhere(), "`artifacts` of its manifest holds")


def test_an_artifact_twice_or_under_another_stage_or_with_more_files_is_refused(study, elsewhere):
    def twice(manifest, _):
        manifest["artifacts"].append(study.name)

    def elsewhere_staged(manifest, files):
        moved = study.name.replace("sample/", "train/")
        for file in [file for file in files if file.startswith(f"{study.folder}/")]:
            files[file.replace(study.name, moved)] = files[file]
        manifest["artifacts"].append(moved)

    def more(_, files):
        files[f"{study.folder}/state/step-1/state.pt"] = b"x"

    path = export(study)
    content, there = path.read_bytes(), elsewhere()
    for change, message in ((twice, "`artifacts` of its manifest holds"), (more, "state.pt is not in the manifest"),
                            (elsewhere_staged, "is an artifact of stage 'sample'")):  # fmt: skip
        path.write_bytes(content)
        refused(with_manifest(path, change), there, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": []}, "`files` of its manifest"), ({"files": None}, "`files` of its manifest"),
        ({"targets": {}}, "`targets` of its manifest"), ({"targets": [[]]}, "`targets` of its manifest"),
        ({"artifacts": "x"}, "`artifacts` of its manifest"), ({"left_out": [1]}, "`left_out` of its manifest"),
        ({"format": {}}, "has format"),
    ],
)  # fmt: skip
def test_a_manifest_of_other_types_is_one_line(study, elsewhere, change, message):
    path = export(study)
    with_manifest(path, lambda manifest, _: manifest.update(change))
    refused(path, elsewhere(), message)


def test_a_manifest_or_spec_that_is_nested_deeply_is_one_line(study, elsewhere):
    path = export(study)
    content, there = path.read_bytes(), elsewhere()
    rewritten(path, lambda files: files.update({MANIFEST: b"[" * 100_000}))
    refused(path, there, "its manifest cannot be read: it is nested too deeply")
    for depth in (100, 900, 100_000):
        for name in ("spec.json", "manifest.json"):
            nested = b'{"params": {"x": ' + b"[" * depth + b"]" * depth + b'}, "inputs": {}}'
            path.write_bytes(content)
            with_manifest(
                path, lambda _, files, name=name, nested=nested: files.update({f"{study.folder}/{name}": nested})
            )
            refused(path, there, f"spec.json or manifest.json of {study.name} is damaged")


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"\\ud800"'])
def test_a_spec_with_what_no_plan_writes_is_one_line(study, elsewhere, value):
    path, there = export(study), elsewhere()
    spec = f'{{"stage": "train", "params": {{"x": {value}}}, "inputs": {{}}}}'.encode()
    with_manifest(path, lambda _, files: files.update({f"{study.folder}/spec.json": spec}))
    refused(path, there, f"spec.json or manifest.json of {study.name} is damaged")


def test_names_that_are_long_or_mean_one_file_twice_are_one_line(study, elsewhere):
    path = export(study)
    content, there = path.read_bytes(), elsewhere()
    for names in (["./a", "a"], ["a", "a/b"], ["a/b", "a"], ["a//b"], ["z" * 300], ["a/" * 3000 + "a"], ["a\x1b[2J"]):
        path.write_bytes(content)
        rewritten(path, lambda files, names=names: files.update(dict.fromkeys(names, b"x")))
        refused(path, there, "which no export writes|twice, as file and folder")


def test_a_folder_is_no_archive(study, elsewhere):
    there = elsewhere()
    refused(there, there, "is a folder, not an archive")


# --- what is here when an archive arrives -----------------------------------------------------------------------------


def unfinished(artifact: Artifact) -> dict[str, bytes]:
    """Make it one that is being computed: with a checkpoint, without a manifest."""
    artifact.manifest_path.unlink()
    artifact.seal_path.unlink()
    (artifact.payload / "half").write_bytes(b"hours of work")
    return tree(Path("results"))


def test_what_is_computed_or_about_to_be_read_is_not_replaced(study):
    path = export(study)
    before = unfinished(study)
    with hold_lock(lock_path(study.folder)), pytest.raises(UserError, match=f"{study.name} is being computed now"):
        archive.read(path)
    workflow = Path(".snakemake/locks/0.input.lock")
    workflow.parent.mkdir(parents=True)
    workflow.touch()
    with pytest.raises(UserError, match="a workflow is running in this folder"):
        archive.read(path)
    assert {name: content for name, content in tree(Path("results")).items() if not name.endswith(".lock")} == before


def test_an_unfinished_folder_goes_to_the_trash(study):
    path = export(study)
    unfinished(study)
    assert archive.read(path).added == [study.name]
    (removal,) = trash.removals()
    assert (removal.command, removal.artifacts) == ("import", [study.name])
    assert (removal.folder / study.name / "payload/half").read_bytes() == b"hours of work"
    assert verify(study.folder).problems == [] and not (study.payload / "half").exists()


def test_a_folder_that_is_a_link_is_one_line(study, tmp_path):
    path = export(study)
    unfinished(study)
    study.folder.rename(tmp_path / "disk")
    study.folder.symlink_to(tmp_path / "disk")
    refused(path, tmp_path / "here", f"{study.folder} is a link or a file: move it away")


def test_a_figure_and_a_page_of_a_named_report_are_exported_with_their_plan(study, elsewhere, tmp_path):
    """Their paths do not say which plan they were made from."""
    plan = Path("results/plans/report/paper/plan.json")
    shown = [
        Path("results/reports/paper.html"),
        Path("results/figures/paper/scores.svg"),
        Path("results/tables/paper/scores.md"),
    ]
    for file in (plan, *shown):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"artifacts": [study.name], "rows": []}))
    for file in shown:
        record_view(plan, file)
    Path("mine.csv").write_text("a view that somebody wrote elsewhere by hand")
    record_view(plan, Path("mine.csv"))
    path = export(study)
    there = elsewhere()
    assert set(archive.read(path).targets) == {"results/ood/toy.csv", *map(str, shown)}
    (tmp_path / "here/results/plans/report/paper/made-mine.csv.json").unlink()
    assert tree(there / "results") == tree(tmp_path / "here/results")
