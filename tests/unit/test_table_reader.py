"""The one reader of tables: splits of folders, turns of conversations, broken content, inputs without a name."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from selfdistill.plan.planner import Planner
from selfdistill.plan.settings import load_config
from selfdistill.schema.assets import AssetLock, read_assets
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import FieldMap, FileSource
from selfdistill.sources import load_problems
from selfdistill.sources.columnar import BATCH_BYTES
from selfdistill.sources.tables import read_batches, read_table

PIN = AssetPin(file="mine", sha256="0" * 64)
CHAT = FieldMap(question="prompt.user.content")


def load(path: Path, **settings):
    return load_problems(FileSource(pin=PIN, **settings), locate=lambda pin: path)


def questions(path: Path, **settings) -> list[str]:
    return [problem["question"] for problem in load(path, **settings)[0]]


def rows(*names: str) -> list[dict[str, str]]:
    return [{"question": name, "answer": "1"} for name in names]


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# --- splits of a folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00002.jsonl", "data/test-00000-of-00001.jsonl"),
        ("train/0000.jsonl", "test/0000.jsonl"),
        ("math_train.jsonl", "math-eval.jsonl"),
    ],
)
def test_several_splits_of_a_folder_are_refused_until_one_is_named(tmp_path, names):
    for name, question in zip(names, ("seen", "unseen"), strict=True):
        write_jsonl(tmp_path / name, rows(question))
    with pytest.raises(UserError, match="several splits: .*test.*Name one in the source, e.g. `split: "):
        load(tmp_path)
    assert questions(tmp_path, split="train") == ["seen"]
    assert questions(tmp_path, split="test") == ["unseen"]
    with pytest.raises(UserError, match="has no split `tran`. Did you mean `train`"):
        load(tmp_path, split="tran")


def test_shards_of_one_split_are_read_in_order_and_a_file_or_folder_can_be_named(tmp_path):
    for number in (1, 0):
        write_jsonl(tmp_path / f"data/train-0000{number}-of-00002.jsonl", rows(f"q{number}"))
    assert questions(tmp_path) == ["q0", "q1"]
    write_jsonl(tmp_path / "other/test.jsonl", rows("t"))
    assert questions(tmp_path, within="other/test.jsonl") == ["t"]
    assert questions(tmp_path, within="data") == ["q0", "q1"]
    with pytest.raises(UserError, match="holds no other/tst.jsonl. Did you mean `other/test.jsonl`"):
        load(tmp_path, within="other/tst.jsonl")
    with pytest.raises(UserError, match="holds no ../"):
        load(tmp_path / "data", within="../other/test.jsonl")
    with pytest.raises(UserError, match="is one file of your own; leave out file"):
        load(tmp_path / "other/test.jsonl", within="x.jsonl")
    with pytest.raises(UserError, match="split: train is for folders, and this is one file"):
        load(tmp_path / "other/test.jsonl", split="train")


def test_a_saved_dataset_dict_needs_a_split_and_a_saved_dataset_none(tmp_path):
    both = {"train": datasets.Dataset.from_list(rows("seen")), "test": datasets.Dataset.from_list(rows("unseen"))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "dict")
    with pytest.raises(UserError, match="several splits: train, test"):
        load(tmp_path / "dict")
    assert questions(tmp_path / "dict", split="test") == ["unseen"]
    assert questions(tmp_path / "dict", within="train") == ["seen"]
    both["train"].save_to_disk(tmp_path / "one")
    assert questions(tmp_path / "one") == ["seen"]


def test_a_folder_without_a_table_is_one_error(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UserError, match=r"holds no file that ends in \.parquet"):
        load(tmp_path)


def planned(project_root, source: dict, path: Path):
    """The spec of a data set that reads an asset of the user's own; or an asset of the lock."""
    known = read_assets(project_root).assets
    assets = AssetLock(assets=known, local={"mine": {"path": str(path), "sha256": "1" * 64}})
    raw = yaml.safe_load((project_root / "config/config.yaml").read_text(encoding="utf-8"))
    raw["datasets"]["d"] = {"source": {"kind": "asset", **source}}
    return Planner(load_config(raw), assets).dataset("d").spec


def test_a_data_set_of_the_config_can_name_the_split_or_the_file(project_root, tmp_path):
    spec = planned(project_root, {"asset": "mine", "split": "test"}, tmp_path)
    assert (spec.source.split, spec.source.within) == ("test", None)
    assert spec.slug({}) == f"{tmp_path.name}-test"
    spec = planned(project_root, {"asset": "mine", "file": "data/train.jsonl"}, tmp_path)
    assert (spec.source.split, spec.source.within) == (None, "data/train.jsonl")
    assert spec.source.pin == AssetPin(file=tmp_path.name, sha256="1" * 64)
    one = write_jsonl(tmp_path / "one.jsonl", rows("q"))
    with pytest.raises(UserError, match="`mine` is one file of your own; leave out file: x.jsonl"):
        planned(project_root, {"asset": "mine", "file": "x.jsonl"}, one)
    asset = next(name for name, entry in read_assets(project_root).assets.items() if entry.kind == "dataset")
    with pytest.raises(UserError, match=rf"datasets\.d\.source\.split`: `{asset}` is pinned file by file"):
        planned(project_root, {"asset": asset, "split": "train"}, tmp_path)


# --- conversations ---------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is 1+1?"}
REPLY = {"role": "assistant", "content": "2"}


def chats(*prompts: list[dict]) -> list[dict]:
    return [{"prompt": turns, "answer": "2"} for turns in prompts]


def test_a_turn_is_named_by_its_role_and_the_system_text_comes_along(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", chats([SYSTEM, USER], [USER], [USER, REPLY]))
    for field in ("prompt.user.content", "prompt.-1.content"):
        if field == "prompt.-1.content":
            write_jsonl(path, chats([SYSTEM, USER], [USER]))
        problems, _ = load(path, fields=FieldMap(question=field))
        assert {problem["question"] for problem in problems} == {"What is 1+1?"}
        assert [problem.get("system") for problem in problems][:2] == ["Be brief.", None]


def test_other_names_of_roles_and_texts_are_known(tmp_path):
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "What is 1+1?"}]
    path = write_jsonl(tmp_path / "p.jsonl", chats(turns))
    (problem,), _ = load(path, fields=FieldMap(question="prompt.human.value"))
    assert (problem["question"], problem["system"]) == ("What is 1+1?", "Be brief.")


@pytest.mark.parametrize("order", [0, 1])
def test_a_mixture_that_would_be_read_wrongly_is_refused(tmp_path, order):
    prompts = [[SYSTEM, USER], [USER]]
    path = write_jsonl(tmp_path / "p.jsonl", chats(*(prompts[::-1] if order else prompts)))
    with pytest.raises(UserError) as caught:
        load(path, fields=FieldMap(question="prompt.0.content"))
    assert f"line {order + 1}: fields.question: `prompt.0.content` leads to what the system says" in str(caught.value)
    assert "Take the turn by its role: `prompt.user.content`" in str(caught.value)


def test_a_system_turn_that_a_path_by_index_would_lose_is_refused_until_a_field_takes_it(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", chats([SYSTEM, USER]))
    with pytest.raises(UserError, match="comes after a system turn, which no field takes"):
        load(path, fields=FieldMap(question="prompt.1.content"))
    fields = FieldMap(question="prompt.1.content", system="prompt.0.content")
    assert load(path, fields=fields)[0][0]["system"] == "Be brief."


def test_earlier_turns_that_a_problem_cannot_hold_are_counted(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", chats([USER, REPLY, {"role": "user", "content": "And 2+2?"}], [USER]))
    problems, dropped = load(path, fields=CHAT)
    assert [problem["question"] for problem in problems] == ["What is 1+1?"]
    assert dropped == {"earlier turns before the question": 1}


# --- content ---------------------------------------------------------------------------------------------------------


def test_text_in_binary_columns_is_text_and_other_bytes_are_dropped(tmp_path):
    table = pa.table(
        {
            "question": pa.array([b"What is 1+1?", b"\xff\xfe", "Wie groß?".encode()], pa.binary()),
            "answer": pa.array([b"2", b"2", b"3"], pa.large_binary()),
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    problems, dropped = load(tmp_path / "p.parquet")
    assert [(p["question"], p["answer"]) for p in problems] == [("What is 1+1?", "2"), ("Wie groß?", "3")]
    assert dropped == {"question is not a text or number": 1}


def test_half_a_surrogate_pair_becomes_the_replacement_character_and_is_counted(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"question": "half \\ud83d here", "answer": 1}\n{"question": "whole \\ud83d\\ude00", "answer": 1}\n'
    )
    problems, counts = load(path)
    assert [problem["question"] for problem in problems] == ["half � here", "whole 😀"]
    assert counts == {"kept with a broken character": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "question,answer,answer\nq,1,2\n", "line 1: two columns are called `answer`"),
        (
            "p.jsonl",
            '{"question": "q", "answer": 1, "answer": 2}\n',
            "line 1 is not valid JSON: `answer` is given twice",
        ),
    ],
)
def test_what_is_given_twice_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load(tmp_path / name)
    assert message in str(caught.value)


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_zst_file_that_was_cut_short_is_an_error_everywhere(tmp_path, cut):
    text = "".join(json.dumps({"question": f"{n} {os.urandom(8).hex()}", "answer": n}) + "\n" for n in range(200))
    path = tmp_path / "p.jsonl.zst"
    path.write_bytes(zstandard.compress(text.encode())[:-cut])
    with pytest.raises(UserError, match="cannot be read: "):
        load(path)
    path.write_bytes(b"".join(zstandard.compress(part.encode()) for part in (text[:70], text[70:])))
    assert len(load(path)[0]) == 200


def test_large_rows_of_parquet_come_a_few_at_a_time(tmp_path):
    """One row group of 512 rows of 1 MB: a reader that counts rows would hold half a gigabyte."""
    path = tmp_path / "p.parquet"
    texts = pa.array([str(n % 10) * 2**20 for n in range(512)])
    pq.write_table(pa.table({"completion": texts}), path, row_group_size=512)
    sizes = [sum(len(record.values["completion"]) for record in batch) for batch in read_batches(path, ["completion"])]
    assert (sum(sizes), len(sizes) > 8) == (512 * 2**20, True)
    assert max(sizes) <= 4 * BATCH_BYTES
    code = (
        "import sys; from selfdistill.sources.tables import read_table\n"
        "print(sum(len(record.values['completion']) for record in read_table(sys.argv[1], ['completion'])))"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (400 * 2**20, 400 * 2**20))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, preexec_fn=limit, env=environment
    )
    assert done.stdout.strip() == str(512 * 2**20), done.stderr[-500:]


def test_an_empty_parquet_file_says_that_it_has_no_rows(tmp_path):
    pq.write_table(
        pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}), tmp_path / "p.parquet"
    )
    with pytest.raises(UserError) as caught:
        load(tmp_path / "p.parquet")
    assert "the file has no rows" in str(caught.value) and "Did you mean" not in str(caught.value)


def test_pretty_printed_objects_are_records_and_a_cut_line_stays_an_error_of_its_line(tmp_path):
    records = [{"question": f"q }}{{ {n}", "answer": [n], "more": {"a": '"{'}} for n in range(3)]
    path = tmp_path / "p.json"
    path.write_text("\n".join(json.dumps(record, indent=2) for record in records))
    found = list(read_table(path))
    assert [record.values for record in found] == records
    assert [record.number for record in found] == [1, 10, 19]
    path.write_text('{"question": "q", "answer": 1}\n{"question": "q",\n{"question": "r", "answer": 2}\n')
    with pytest.raises(UserError, match="line 2 is not valid JSON"):
        list(read_table(path))
