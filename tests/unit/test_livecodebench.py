"""LiveCodeBench: the wire format, the dates, the half of the tests, and pickles that would do harm.

There is no network here, so the files are made by this test in the published form; docs/data.md says so.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections import Counter
from pathlib import Path

import pytest

from selfdistill.grading import grade
from selfdistill.grading.sandbox import available
from selfdistill.schema.common import AssetPin, CodeGrader
from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import LiveCodeBenchSource
from selfdistill.sources import load_problems
from selfdistill.sources.livecodebench import UnsafePickle, decode_tests, plain_unpickle

PIN = AssetPin(file="test6.jsonl", sha256="0" * 64)
STARTER = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        "


def packed(tests: list[dict], protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests), protocol=protocol))).decode()


def row(number: int, date: str, **changes) -> dict:
    tests = [{"input": f"{i}\n{number}", "output": str(i + number), "testtype": "functional"} for i in range(11)]
    return {
        "question_title": f"Add {number}",
        "question_content": f"Add two numbers ({number}).\n",
        "platform": "leetcode",
        "question_id": str(number),
        "contest_id": "weekly",
        "contest_date": date,
        "starter_code": STARTER,
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": packed(tests),
        "metadata": json.dumps({"func_name": "add"}),
    } | changes


def load(path: Path, rows: list[dict], **settings):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return load_problems(LiveCodeBenchSource(pin=PIN, **settings), locate=lambda pin: path)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "test6.jsonl"


def test_contests_of_the_papers_months_are_taken(file):
    dates = ["2025-01-31T00:00:00", "2025-02-01T00:00:00", "2025-04-30T23:59:59", "2025-05-01T00:00:00"]
    problems, counts = load(file, [row(i, date) for i, date in enumerate(dates)])
    assert ["(1)" in p["question"] or "(2)" in p["question"] for p in problems] == [True, True]
    assert counts == {"contest outside the dates": 2}
    every, _ = load(
        file, [row(i, date) for i, date in enumerate(dates)], first_date="2024-01-01", end_date="2026-01-01"
    )
    assert len(every) == 4


def test_a_task_has_its_signature_its_function_and_all_hidden_tests(file):
    ((problem,), _) = load(file, [row(3, "2025-03-01T00:00:00")])
    assert problem["question"] == (
        "Add two numbers (3).\n\nYour solution should have the following signature: "
        "```python\ndef add(a: int, b: int) -> int:\n```"
    )
    answer = json.loads(problem["answer"])
    assert answer["function"] == "add"
    assert answer["tests"] == [{"input": f"{i}\n3", "output": str(i + 3)} for i in range(11)]
    assert problem["family"] == "easy"


def test_tasks_for_standard_input_have_neither(file):
    plain = row(1, "2025-03-01", starter_code="", metadata="{}")
    ((problem,), _) = load(file, [plain])
    assert problem["question"] == "Add two numbers (1)."
    assert json.loads(problem["answer"])["function"] is None


def test_half_of_the_tests_reward_training_whatever_the_other_rows_are(file):
    rows = [row(i, "2025-03-01") for i in range(4)]
    training = [json.loads(p["answer"])["training"] for p in load(file, rows)[0]]
    assert [len(chosen) for chosen in training] == [5] * 4
    assert all(chosen == sorted(set(chosen)) and max(chosen) < 11 for chosen in training)
    assert len(set(map(tuple, training))) > 1
    assert [json.loads(p["answer"])["training"] for p in load(file, rows[::-1])[0]] == training[::-1]
    other = [json.loads(p["answer"])["training"] for p in load(file, rows, seed=1)[0]]
    assert other != training
    one = row(1, "2025-03-01", private_test_cases=packed([{"input": "1", "output": "2"}]))
    assert json.loads(load(file, [one])[0][0]["answer"])["training"] == [0]


@pytest.mark.parametrize("protocol", range(6))
def test_tests_are_read_in_every_published_form(protocol):
    tests = [{"input": 'ä\n"1"', "output": "x" * 100000, "testtype": "stdin"}]
    plain = [{"input": 'ä\n"1"', "output": "x" * 100000}]
    assert decode_tests(packed(tests, protocol)) == plain
    assert decode_tests(json.dumps(tests)) == plain


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_that_would_run_code_is_refused_before_it_does(file, tmp_path):
    victim = tmp_path / "touched"
    data = pickle.dumps(Harmful(victim))
    with pytest.raises(UnsafePickle, match="STACK_GLOBAL"):
        plain_unpickle(data)
    with pytest.raises(UnsafePickle, match="GLOBAL|REDUCE"):
        plain_unpickle(pickle.dumps(Harmful(victim), protocol=0))
    text = base64.b64encode(zlib.compress(data)).decode()
    with pytest.raises(UserError, match="line 1: private_test_cases cannot be read: it uses"):
        load(file, [row(1, "2025-03-01", private_test_cases=text)])
    assert not victim.exists()
    pickle.loads(data)
    assert victim.exists(), "the pickle was a real one"


def test_plain_values_are_unpickled_and_nothing_else():
    for value in ("text", ["a", ["b"], {"c": 1.5, "d": None}], {"x": [True, 2**70]}):
        for protocol in range(6):
            assert plain_unpickle(pickle.dumps(value, protocol)) == value
    for value in ({1, 2}, Counter("a"), b"bytes", len):
        with pytest.raises(UnsafePickle):
            plain_unpickle(pickle.dumps(value, 4))
    with pytest.raises(UnsafePickle, match="not a pickle"):
        plain_unpickle(b"\xff\x00")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"private_test_cases": "&&"}, "private_test_cases cannot be read"),
        ({"private_test_cases": base64.b64encode(b"no zlib").decode()}, "private_test_cases cannot be read"),
        ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(["list"]))).decode()}, "a list where JSON"),
        ({"private_test_cases": packed([])}, "'no tests': 1"),
        ({"contest_date": "2023-01-01"}, "no task is from 2025-02-01"),
    ],
)
def test_what_cannot_be_read_is_one_error(file, changes, message):
    with pytest.raises(UserError, match=message):
        load(file, [row(1, "2025-03-01") | changes])


def test_a_file_of_something_else_is_named(file):
    with pytest.raises(UserError, match="line 1 has no `question_content`, so this is not a file of LiveCodeBench"):
        load(file, [{"question": "q"}])


@pytest.mark.skipif(available() is None, reason="this machine has no sandbox for untrusted programs")
def test_a_task_of_the_file_is_graded(file):
    ((problem,), _) = load(file, [row(3, "2025-03-01")])
    texts = [f"```python\n{STARTER}{body}\n```" for body in ("return a + b", "return a - b")]
    for tests in ("training", "all"):
        grades = grade(texts, [problem["answer"]] * 2, ["eos"] * 2, CodeGrader(tests=tests))
        assert [item.outcome for item in grades] == ["correct", "wrong"]
        assert grades[1].feedback.startswith("Test 1 of ")
