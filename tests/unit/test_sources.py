"""Problem sources: files by field mapping, the toy world, reasoning-gym; what is dropped is counted."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from selfdistill.prompts import normalise_question
from selfdistill.schema.assets import read_assets
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import FieldMap, FileSource, ReasoningGymSource, ToySource
from selfdistill.sources import load_problems
from selfdistill.sources.paths import look_up

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
PIN = AssetPin(file="problems", sha256="0" * 64)
PAPER_FIELDS = FieldMap(question="prompt.0.content", answer="reward_model.ground_truth")


def load(path: Path, **settings):
    return load_problems(FileSource(pin=PIN, **settings), locate=lambda pin: path)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


ROWS = [{"question": "What is 1 + 1?", "answer": 2}, {"question": "What is 007?", "answer": "7"}]
AS_PROBLEMS = [
    {"question": "What is 1 + 1?", "answer": "2", "family": "", "solution": None},
    {"question": "What is 007?", "answer": "7", "family": "", "solution": None},
]


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet", "lines.json"])
def test_every_kind_of_file_gives_the_same_problems(tmp_path, ending):
    path = tmp_path / f"problems.{ending}"
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist([{**row, "answer": str(row["answer"])} for row in ROWS]), path)
    else:
        csv = "question,answer\n" + "".join(f'"{row["question"]}",{row["answer"]}\n' for row in ROWS)
        write(path, {"json": "\n " + json.dumps(ROWS), "csv": csv}.get(ending, lines))
    assert load(path) == (AS_PROBLEMS, {})


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_compressed_files_give_the_same_problems(tmp_path, ending, packed):
    csv = "question,answer\n" + "".join(f'"{row["question"]}",{row["answer"]}\n' for row in ROWS)
    text = {"csv": csv, "json": json.dumps(ROWS)}.get(ending, "\n".join(map(json.dumps, ROWS)))
    path = tmp_path / f"some.problems.{ending}.{packed}"
    path.write_bytes((gzip.compress if packed == "gz" else zstandard.compress)(text.encode()))
    assert load(path) == (AS_PROBLEMS, {})


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_a_compressed_file_that_is_cut_short_or_none_is_one_error(tmp_path, packed):
    whole = (gzip.compress if packed == "gz" else zstandard.compress)(json.dumps(ROWS * 1000).encode())
    for content in (whole[:-20], b"no compressed file"):
        path = tmp_path / f"p.jsonl.{packed}"
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read: "):
            load(path)


def test_a_system_message_is_kept_where_a_row_has_one(tmp_path):
    rows = [{"question": "q", "answer": "A", "meta": {"rules": "Be brief."}}, {"question": "r", "answer": "B"}]
    problems, _ = load(write(tmp_path / "p.json", json.dumps(rows)), fields=FieldMap(system="meta.rules"))
    assert problems[0]["system"] == "Be brief."
    assert "system" not in problems[1]


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv"])
def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path, ending):
    text = "question,answer\nq,1\n" if ending == "csv" else '{"question": "q", "answer": 1}'
    path = tmp_path / f"p.{ending}"
    path.write_text(f"[{text}]" if ending == "json" else text, encoding="utf-8-sig")
    assert load(path)[0][0]["answer"] == "1"


def test_dotted_paths_go_through_dicts_lists_and_json_strings():
    row = {"a": [{"b": '{"c": [1, {"d": "deep"}]}'}], "x.y": "whole key", "z": {"v.w": "rest of the path"}}
    assert look_up(row, "a.0.b.c.1.d") == "deep"
    assert look_up(row, "x.y") == "whole key"
    assert look_up(row, "z.v.w") == "rest of the path"
    for absent in ("a.1.b", "a.0.b.c.9", "a.b", "x", "a.0.b.c.0.d"):
        assert not isinstance(look_up(row, absent), (str, int, list, dict))


def test_what_is_not_usable_is_counted_by_reason(tmp_path):
    rows = [
        *ROWS,
        {"question": "no answer"},
        {"question": "null answer", "answer": None},
        {"question": "  ", "answer": "1"},
        {"question": "blank answer", "answer": " "},
        {"question": ["not", "text"], "answer": "1"},
    ]
    problems, counts = load(write(tmp_path / "p.json", json.dumps(rows)))
    assert problems == AS_PROBLEMS
    assert counts == {
        "missing answer": 2,
        "empty question": 1,
        "empty answer": 1,
        "question is not a text or number": 1,
    }


def test_whole_floats_are_integers_and_other_numbers_stay(tmp_path):
    rows = [{"question": "q", "answer": value} for value in (27.0, 0.5, -3)]
    problems, _ = load(write(tmp_path / "p.json", json.dumps(rows)))
    assert [problem["answer"] for problem in problems] == ["27", "0.5", "-3"]


def test_family_and_solution_are_kept_and_may_have_gaps(tmp_path):
    rows = [{"q": "1?", "a": 1, "info": '{"subject": "Algebra", "solution": "one"}'}, {"q": "2?", "a": 2, "info": "{}"}]
    fields = FieldMap(question="q", answer="a", family="info.subject", solution="info.solution")
    problems, counts = load(write(tmp_path / "p.json", json.dumps(rows)), fields=fields)
    assert [(p["family"], p["solution"]) for p in problems] == [("Algebra", "one"), ("", None)]
    assert not counts


def test_choices_are_appended_and_the_answer_becomes_a_letter(tmp_path):
    options = ["iron", "gold", "tin"]
    rows = [{"question": "Which?", "answer": answer, "choices": options} for answer in ("b", 2, "iron", "lead", 3)] + [
        {"question": "Which?", "answer": "A", "choices": {"text": options, "label": ["A", "B", "C"]}}
    ]
    rows.append({"question": "Which?", "answer": "A", "choices": None})
    problems, counts = load(write(tmp_path / "p.json", json.dumps(rows)), fields=FieldMap(choices="choices"))
    assert [problem["answer"] for problem in problems] == ["B", "C", "A", "A"]
    assert {problem["question"] for problem in problems} == {"Which?\n\nA) iron\nB) gold\nC) tin"}
    assert counts == {"answer is not one of the choices": 2, "missing choices": 1}


def test_the_instruction_is_removed_and_rows_without_it_are_counted(tmp_path):
    rows = [{"question": f"What is 2?{BOXED}", "answer": 2}, {"question": "What is 3?", "answer": 3}]
    problems, counts = load(write(tmp_path / "p.json", json.dumps(rows)), instruction="boxed")
    assert [problem["question"] for problem in problems] == ["What is 2?", "What is 3?"]
    assert counts == {"kept without the instruction": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "x", "ending .txt"),
        ("p.json", '{"question": 1', "line 1 is not valid JSON"),
        ("p.json", "[1]", "element 1 is not a JSON object"),
        ("p.json", "[{]", "not valid JSON"),
        ("p.jsonl", '{"question": "q", "answer": 1}\n7\n', "line 2 is not a JSON object"),
        ("p.jsonl", "", "no row is a usable problem"),
        ("p.csv", "question,answer\nq\n", "line 2 has 1 cells, but the header has 2"),
        ("p.parquet", "PAR?", "cannot be read as parquet"),
        ("p.json", '[{"question": "q", "anser": 1}]', "fields.answer: no row has `answer`. Did you mean `anser`?"),
        ("p.json", '[{"question": "q", "answer": ""}]', "'empty answer': 1"),
    ],
)
def test_a_file_that_is_no_problem_table_is_one_error(tmp_path, name, text, message):
    with pytest.raises(UserError, match="p") as error:
        load(write(tmp_path / name, text))
    assert message in str(error.value)


def test_toy_problems_come_from_their_generator():
    problems, counts = load_problems(ToySource(families=["id"], count=3))
    assert len({problem["question"] for problem in problems}) == 3
    assert not counts


def test_reasoning_gym_gives_questions_with_answers_as_text():
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    source = ReasoningGymSource(task="chain_sum", count=5, seed=3, options=options)
    problems, counts = load_problems(source)
    assert len(problems) == 5
    assert not counts
    for problem in problems:
        expression = problem["question"].split(":")[1].strip(" =")
        left, sign, right = expression.split()
        assert int(problem["answer"]) == int(left) + (int(right) if sign == "+" else -int(right))
    more, _ = load_problems(source.model_copy(update={"count": 8}))
    assert more[:5] == problems


def test_reasoning_gym_names_the_nearest_task_and_option():
    with pytest.raises(UserError, match="Did you mean `chain_sum`"):
        load_problems(ReasoningGymSource(task="chainsum", count=1))
    with pytest.raises(UserError, match="Did you mean `min_terms`"):
        load_problems(ReasoningGymSource(task="chain_sum", count=1, options={"min_term": 2}))
    with pytest.raises(UserError, match="max_terms must be >= min_terms"):
        load_problems(ReasoningGymSource(task="chain_sum", count=1, options={"min_terms": 3, "max_terms": 2}))


def test_reasoning_gym_tasks_without_a_gold_answer_are_refused():
    with pytest.raises(UserError, match="'missing answer': 4"):
        load_problems(ReasoningGymSource(task="graph_color", count=4))


# Rows and distinct questions of docs/method.md 11.3 to 11.5.
FILES = [
    ("math_evaluation", "aime24.parquet", 30, 30),
    ("math_evaluation", "aime25.parquet", 30, 30),
    ("math_evaluation", "amc23.parquet", 40, 40),
    ("math_evaluation", "math500.parquet", 500, 500),
    ("math_coverage", "seen_1x64.parquet", 64, 1),
    ("math_coverage", "seen_8x8.parquet", 64, 8),
    ("math_coverage", "seen_64.parquet", 64, 64),
    ("math_coverage", "seen_128.parquet", 128, 128),
    ("math_coverage", "seen_512.parquet", 512, 511),
    ("sciknoweval_chemistry", "train.json", 1890, 1890),
    ("sciknoweval_chemistry", "test.json", 210, 210),
]
needs_data = pytest.mark.skipif(
    not os.environ.get("SELFDISTILL_TEST_DATA"), reason="SELFDISTILL_TEST_DATA is not set: no public data files here"
)


def load_real(asset: str, file: str, instruction: str = "boxed"):
    from selfdistill.assets import Assets

    root = Path(__file__).parents[2]
    chemistry = FieldMap(question="prompt", answer="answer", system="system")
    fields = chemistry if asset.startswith("sci") else PAPER_FIELDS
    source = FileSource(pin=read_assets(root).pin(asset, file), fields=fields, instruction=instruction)
    return load_problems(source, Assets.here(root).file)


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(("asset", "file", "rows", "distinct"), FILES)
def test_public_files_have_the_rows_of_the_paper(asset, file, rows, distinct):
    is_chemistry = asset.startswith("sci")
    problems, counts = load_real(asset, file, "none" if is_chemistry else "boxed")
    assert len(problems) == rows
    assert not counts
    assert len({normalise_question(problem["question"]) for problem in problems}) == distinct
    if is_chemistry:
        assert {problem["answer"] for problem in problems} == set("ABCD")
        assert all("\nA: " in p["question"] and p["question"].endswith("step by step.") for p in problems)
        (system,) = {problem["system"] for problem in problems}
        assert "<answer>\nA\n</answer>" in system
    else:
        assert not any("put your final answer" in problem["question"] for problem in problems)


@pytest.mark.data
@needs_data
def test_public_files_hold_the_answers_and_the_nesting_of_the_paper():
    assert load_real("math_coverage", "seen_1x64.parquet")[0][0]["answer"] == "640"
    assert load_real("math_evaluation", "aime24.parquet")[0][0]["answer"] == "540"
    integers = [p for p in load_real("math_evaluation", "math500.parquet")[0] if p["answer"].lstrip("-").isdigit()]
    assert len(integers) == 311
    texts = [
        {problem["question"] for problem in load_real("math_coverage", f"seen_{name}.parquet")[0]}
        for name in ("1x64", "8x8", "64", "128", "512")
    ]
    assert all(smaller < larger for smaller, larger in zip(texts, texts[1:], strict=False))
    evaluated = {
        problem["question"]
        for name in ("aime24", "aime25", "amc23", "math500")
        for problem in load_real("math_evaluation", f"{name}.parquet")[0]
    }
    assert not texts[-1] & evaluated


@pytest.mark.data
@needs_data
def test_every_public_file_is_one_of_those_above():
    """A file that comes to lie beside them is either loaded by these tests or named here."""
    folder = Path(os.environ["SELFDISTILL_TEST_DATA"])
    found = {path.name for path in folder.rglob("*") if path.is_file() and path.suffix in (".parquet", ".json")}
    assert {file for _, file, _, _ in FILES} == found


@pytest.mark.data
@needs_data
def test_the_two_chemistry_files_are_a_split_in_ten(project_root):
    train, test = (
        {problem["question"] for problem in load_real("sciknoweval_chemistry", f"{part}.json", "none")[0]}
        for part in ("train", "test")
    )
    assert not train & test
    assert len(test) / (len(train) + len(test)) == pytest.approx(0.1)
