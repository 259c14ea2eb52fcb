"""Sources that `datasets.load_dataset` reads: folders and files here, repositories of the hub in its local cache."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from pydantic import ValidationError

from selfdistill.artifacts.store import Artifact, freeze
from selfdistill.artifacts.tables import read_rows
from selfdistill.assets import Assets, add_local
from selfdistill.plan.graph import Node
from selfdistill.plan.planner import Planner
from selfdistill.run.job import Job, Tee
from selfdistill.schema.common import AssetPin
from selfdistill.schema.config import Config, DatasetEntry
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.source_entries import LoadedEntry
from selfdistill.schema.sources import FieldMap, LoadedSource
from selfdistill.schema.stages import DatasetSpec
from selfdistill.sources import load_problems
from selfdistill.stages import dataset
from small_specs import small

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"question": "What is 1 + 1?", "answer": "2"}, {"question": "Which agent?", "answer": "007"}]
WANTED = [(row["question"], row["answer"]) for row in ROWS]


def read(place: Path, **settings) -> list[tuple]:
    source = LoadedSource(pin=AssetPin(file=place.name, sha256="0" * 64), **settings)
    problems, _ = load_problems(source, lambda _: place)
    return [(problem["question"], problem["answer"]) for problem in problems]


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


def csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))


@pytest.mark.parametrize(("write", "ending"), [(parquet, "parquet"), (jsonl, "jsonl"), (csv, "csv")])
def test_a_folder_and_a_file_of_every_kind(tmp_path, write, ending):
    write(tmp_path / f"mine/train.{ending}", ROWS)
    write(tmp_path / f"mine/test.{ending}", ROWS[:1])
    assert read(tmp_path / "mine", split="train") == WANTED
    assert read(tmp_path / "mine", split="test") == WANTED[:1]
    assert read(tmp_path / f"mine/train.{ending}") == WANTED


def test_a_kind_that_the_other_reader_does_not_know(tmp_path):
    (tmp_path / "lines.txt").write_text("What is 1 + 1?\nWhat is 2 + 2?\n")
    assert read(tmp_path / "lines.txt", fields=FieldMap(question="text", answer="text"))[1][0] == "What is 2 + 2?"


def test_saved_data_sets(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "both")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "both", split="test") == WANTED[:1]
    assert read(tmp_path / "one") == WANTED
    with pytest.raises(UserError, match="holds several splits: train, test"):
        read(tmp_path / "both")
    with pytest.raises(UserError, match="no configurations"):
        read(tmp_path / "one", config="main")


def test_a_configuration_that_the_readme_names(tmp_path):
    jsonl(tmp_path / "mine/easy.jsonl", ROWS)
    jsonl(tmp_path / "mine/hard.jsonl", ROWS[:1])
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: all\n    path: {name}.jsonl\n" for name in ("easy", "hard")
    )
    (tmp_path / "mine/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert read(tmp_path / "mine", config="hard") == WANTED[:1]
    with pytest.raises(UserError, match=r"BuilderConfig 'hrd' not found. Available: \['easy', 'hard'\]"):
        read(tmp_path / "mine", config="hrd")


def test_patterns_of_files(tmp_path):
    jsonl(tmp_path / "mine/one.jsonl", ROWS)
    jsonl(tmp_path / "mine/two.jsonl", ROWS[:1])
    assert read(tmp_path / "mine", files=["two*"]) == WANTED[:1]
    with pytest.raises(UserError, match=r"cannot read it with files: three\*"):
        read(tmp_path / "mine", files=["three*"])


def test_cells_of_csv_stay_text(tmp_path):
    """pandas alone makes 7 of 007 and nothing of NA."""
    csv(tmp_path / "mine.csv", [*ROWS, {"question": "Which salt?", "answer": "NA"}])
    assert [answer for _, answer in read(tmp_path / "mine.csv")] == ["2", "007", "NA"]


def test_a_text_of_json_that_looks_like_a_date_is_refused_in_a_column_that_is_read(tmp_path):
    jsonl(tmp_path / "mine.jsonl", [{"question": "When?", "answer": "2024-01-01", "made": "2024-01-02"}])
    with pytest.raises(UserError, match="row 1: `load_dataset` takes the text in `answer` for a date"):
        read(tmp_path / "mine.jsonl")
    assert read(tmp_path / "mine.jsonl", fields=FieldMap(answer="question")) == [("When?", "When?")]


def test_numbers_and_texts_in_one_column_of_json(tmp_path):
    jsonl(tmp_path / "mine.jsonl", [{"question": "a", "answer": 3}, {"question": "b", "answer": "four"}])
    assert read(tmp_path / "mine.jsonl") == [("a", "3"), ("b", "four")]


def test_a_split_that_is_not_there_and_several_without_a_name(tmp_path):
    jsonl(tmp_path / "mine/train.jsonl", ROWS)
    jsonl(tmp_path / "mine/test.jsonl", ROWS)
    with pytest.raises(UserError, match="no split `tset`.* There: train, test"):
        read(tmp_path / "mine", split="tset")
    with pytest.raises(UserError, match="several splits"):
        read(tmp_path / "mine")


@pytest.mark.parametrize(("name", "content"), [("mine.parquet", "PAR1 no"), ("mine.jsonl", '{"question": "a", ')])
def test_broken_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="`load_dataset` cannot read it") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A project, and the folder of one commit in the hub's cache; no server can be reached."""
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFDISTILL_TEST_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "datasets--owner--problems"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    for number, row in enumerate(ROWS):
        # As the hub's library keeps them: a link from the commit to the content.
        blob = repository / "blobs" / str(number)
        parquet(blob, [row])
        link = folder / f"main/train-0000{number}-of-00002.parquet"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return folder


def entry(**settings) -> Node:
    source = {"kind": "load_dataset", "repo": "owner/problems", "revision": COMMIT, **settings}
    datasets = {"mine": DatasetEntry.model_validate({"source": source})}
    config = Config.model_construct(datasets=datasets, models={}, benchmarks={}, experiments={}, recipes={})
    return Planner(config, Assets.here().lock).dataset("mine")


def make(node: Node) -> Artifact:
    freeze(node.folder(), node.frozen_spec)
    artifact = Artifact.open(node.folder())
    with Tee(Path("log.txt"), node.stage) as tee:
        job = Job(artifact, StageRuntime(), tee)
        artifact.seal(dataset.main(job))
    assert set(job.notes.get("source_files", {})) <= {f"main/train-0000{n}-of-00002.parquet" for n in (0, 1)}
    assert all(len(digest) == 64 for digest in job.notes.get("source_files", {}).values())
    return Artifact.open(node.folder())


def test_a_repository_of_the_hub_from_its_cache_without_a_network(hub):
    node = entry()
    assert node.frozen_spec["params"]["source"]["pin"]["revision"] == COMMIT
    assert node.slug == "problems"
    rows = read_rows(make(node).payload / "problems.parquet")
    assert [(row["question"], row["answer"]) for row in rows] == WANTED


def test_the_digests_of_the_files_that_were_read_are_recorded(hub):
    from selfdistill.files import sha256_file
    from selfdistill.sources.loaded import file_digests

    node = entry()
    source = small(DatasetSpec, source=node.spec.source).source
    names = [f"main/train-0000{number}-of-00002.parquet" for number in (0, 1)]
    assert file_digests(source, hub) == {name: sha256_file(hub / name) for name in names}


def test_a_cache_with_half_of_the_shards_is_refused(hub):
    (hub / "main/train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="1 of 2 files of train are missing"):
        make(entry())


def test_another_number_of_rows_than_the_repository_names_is_refused(hub):
    info = "dataset_info:\n  splits:\n  - name: train\n    num_bytes: 9\n    num_examples: 3\n"
    (hub / "README.md").write_text(f"---\n{info}---\n")
    with pytest.raises(UserError, match="split `train` has 2 rows, but its README.md names 3"):
        make(entry())


def test_a_repository_with_a_loading_script_is_refused_and_not_run(hub):
    (hub / "problems.py").write_text("open('was_run', 'w')")
    with pytest.raises(UserError, match=r"is a program \(problems.py\), and none is run"):
        make(entry())
    assert not Path("was_run").exists()


def test_a_commit_that_is_not_in_the_cache_names_the_command_that_fetches_it(hub):
    other = "f" * 40
    with pytest.raises(UserError, match=f"offline.*hf download owner/problems --repo-type dataset --revision {other}"):
        make(entry(revision=other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"revision": None}, "owner/problems has no revision: give its commit, 40 hex digits"),
        ({"revision": "main"}, "owner/problems has revision main: give its commit, 40 hex digits"),
        ({"asset": "mine"}, "name either an asset or a repo of the hub"),
        ({"repo": None}, "name either an asset or a repo of the hub"),
        ({"repo": None, "asset": "mine"}, "revision belongs to repo"),
        ({"trust_remote_code": True}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_not_pinned_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        LoadedEntry.model_validate({"repo": "owner/problems", "revision": COMMIT, **settings})


def test_a_folder_of_ones_own_is_its_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    Path("config/assets.local.yaml").write_text("{}\n")
    jsonl(tmp_path / "folder/train.jsonl", ROWS)
    add_local(Assets.here(), "folder", tmp_path / "folder")
    node = entry(repo=None, revision=None, asset="folder", split="train")
    assert node.slug == "folder-train"
    assert make(node).frozen_spec["params"]["source"]["pin"]["sha256"] == Assets.here().lock.local["folder"].sha256
    jsonl(tmp_path / "folder/train.jsonl", ROWS[:1])
    with pytest.raises(UserError, match="is pinned: it was changed or cut short"):
        load_problems(node.spec.source, Assets.here().dataset_place)


def test_dropped_rows_are_counted(tmp_path):
    jsonl(tmp_path / "mine.jsonl", [*ROWS, {"question": "no answer", "answer": ""}])
    counts: Counter[str] = Counter()
    source = LoadedSource(pin=AssetPin(file="mine.jsonl", sha256="0" * 64))
    problems, counts = load_problems(source, lambda _: tmp_path / "mine.jsonl")
    assert len(problems) == 2
    assert counts == {"empty answer": 1}
