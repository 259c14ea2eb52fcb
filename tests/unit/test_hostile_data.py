"""Data that somebody made to break a reader: nested deeply, huge numbers, other encodings, files cut short."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from selfdistill.artifacts.tables import read_frame, read_rows, write_rows
from selfdistill.assets.gguf import _recorded
from selfdistill.cli.estimate import _read
from selfdistill.schema.errors import UserError
from selfdistill.sources.folders import read_saved
from selfdistill.sources.livecodebench import decode_tests
from selfdistill.training.distributed import World
from selfdistill.training.metrics import drop_metrics_after
from selfdistill.training.state import _fault
from selfdistill.views.study import _curves
from test_livecodebench import load as load_tasks
from test_livecodebench import packed, row
from test_sources import load

NESTED = "[" * 200_000
DIGITS = "1" * 5000
GOOD = '{"question": "What is 1 + 1?", "answer": 2}\n'


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f'{{"question": "q", "answer": {NESTED}', "nested|recursion"),
        (f'{{"question": "q", "answer": {NESTED}{"]" * 200_000}}}', "nested|recursion"),
        (f'{{"question": "q", "answer": {DIGITS}}}', "4300 digits"),
    ],
)
def test_what_no_reader_can_hold_is_one_line_with_its_place(tmp_path, ending, line, message):
    path = tmp_path / f"p.{ending}"
    path.write_text(GOOD + line if ending == "jsonl" else f"[{line}]", encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: line {2 if ending == 'jsonl' else 1} ")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize("value", ["1" * 4000, "1e308", "-1e308", "1e999", "-0.0", "123456789012345678901234567890"])
def test_numbers_that_can_be_held_become_text(tmp_path, value):
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"question": "q", "answer": {value}}}\n', encoding="utf-8")
    ((problem,), _) = load(path)
    assert float(problem["answer"]) == float(value)


def test_deep_json_inside_a_field_is_a_gap_and_is_counted(tmp_path):
    """Fields may hold JSON as text; one that is nested too deeply has no such path."""
    rows = [{"question": "q", "meta": json.dumps({"answer": 1})}, {"question": "r", "meta": NESTED}]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    problems, dropped = load(path, fields={"question": "question", "answer": "meta.answer"})
    assert [problem["answer"] for problem in problems] == ["1"]
    assert +dropped == {"missing answer": 1}


@pytest.mark.parametrize(
    "tests",
    [NESTED, "[1]", '[{"input": "1"}]', '[{"input": 1, "output": "1"}]', f"[{DIGITS}]", "[null]",
     packed([{"input": "1"}]), packed([[]]), "AAAA", ""],
)  # fmt: skip
def test_tests_of_a_programming_task_that_are_none_are_one_line(tmp_path, tests):
    with pytest.raises(ValueError):
        decode_tests(tests)
    with pytest.raises(UserError, match="private_test_cases") as raised:
        load_tasks(tmp_path / "test6.jsonl", [row(1, "2025-03-01", private_test_cases=tests)])
    assert "\n" not in str(raised.value)


def test_a_pickle_that_breaks_the_unpickler_is_one_line():
    """Only plain instructions, but in an order that no pickler writes."""
    import base64
    import zlib

    for broken in (pickle.EMPTY_LIST + pickle.SETITEM + b".", pickle.MARK + pickle.APPENDS + b".", b"h\x07."):
        with pytest.raises(ValueError, match="pickle"):
            decode_tests(base64.b64encode(zlib.compress(broken)).decode())


@pytest.mark.parametrize(
    "changes",
    [{"metadata": "[1]"}, {"metadata": NESTED}, {"metadata": "{"}, {"question_content": None},
     {"private_test_cases": None}, {"metadata": 7}],
)  # fmt: skip
def test_a_row_of_a_programming_task_that_is_none_is_one_line(tmp_path, changes):
    with pytest.raises(UserError, match="line 1: |element 1: ") as raised:
        load_tasks(tmp_path / "test6.jsonl", [row(1, "2025-03-01", **changes)])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


NOTES = [b"\xff", b"{", NESTED.encode(), b"[1]", b"7", b'{"splits": 3}', b'{"splits": [3]}']


@pytest.mark.parametrize("note", NOTES)
def test_notes_of_a_saved_data_set_that_are_damaged_are_one_line(tmp_path, note):
    (tmp_path / "dataset_dict.json").write_bytes(note)
    with pytest.raises(UserError, match="dataset_dict.json is damaged"):
        list(read_saved(tmp_path, None))


@pytest.mark.parametrize("note", [*NOTES, b"", None])
def test_a_damaged_note_of_an_import_counts_as_none(tmp_path, note):
    path = tmp_path / "x.import.json"
    if note is not None:
        path.write_bytes(note)
    assert _recorded(path) == {}


@pytest.mark.parametrize("config", [b"\xff", b"{", NESTED.encode()])
def test_a_damaged_config_of_a_model_is_one_line(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_bytes(config)
    with pytest.raises(UserError, match="config.json is not valid JSON"):
        _read(path)


@pytest.mark.parametrize("line", [b"\xff\n", b"7\n", b"{}\n", b"x\n", NESTED.encode() + b"\n"])
def test_damaged_metrics_are_one_line_for_who_resumes_and_who_reads(tmp_path, monkeypatch, line):
    monkeypatch.setattr("selfdistill.views.study.check_file", lambda *_: None)  # Its digest would tell first.
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line)
    for use in (lambda: drop_metrics_after(path, 1), lambda: _curves(path)):
        with pytest.raises(UserError, match="metrics.jsonl is damaged"):
            use()


@pytest.mark.parametrize("digests", [b"\xff", b"{", NESTED.encode(), b"7"])
def test_a_state_with_damaged_digests_is_no_state(tmp_path, digests):
    (tmp_path / "digests.json").write_bytes(digests)
    assert _fault(tmp_path, World("cpu")) is not None


def test_a_table_that_is_damaged_is_one_line_with_its_name(tmp_path):
    """Whatever byte: the digest finds it, but a reader must not crash before."""
    path = tmp_path / "problems.parquet"
    write_rows(path, [{"row_id": number, "question": "q" * 100} for number in range(50)], ("row_id", "question"))
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        for read in (read_rows, read_frame):
            try:
                read(path)
            except UserError as error:
                refused += 1
                assert str(error).startswith(f"{path} is damaged") and "\n" not in str(error)
    assert refused > len(whole) / 2
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="is damaged"):
        read_rows(path)


def test_a_table_that_is_missing_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_rows(Path(tmp_path / "none.parquet"))
