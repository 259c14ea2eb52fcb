"""Duplicates and near duplicates: found where planted, scored as by hand, none where there is none."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from instructions import add_instruction
from selfdistill.contamination import find_pairs, reduce_text, runs

PROJECT = Path(__file__).parents[2]
QUESTIONS = [
    "What is the greatest common divisor of $3339$, $2961$, and $1491$?",
    "How many positive perfect squares less than $2023$ are divisible by $5$?",
    "Find the number of ordered pairs $(a,b)$ of integers such that $|a + bi| \\le 5.$",
    "What is the smallest positive integer $n$ such that all the roots of $z^4 + z^2 + 1 = 0$ are roots of unity?",
]


def similarity(first: str, second: str) -> float:
    """The definition, letter by letter: an independent computation of one score."""
    a, b = reduce_text(first).replace(" ", ""), reduce_text(second).replace(" ", "")
    ours = {a[i : i + 5] for i in range(len(a) - 4)}
    theirs = {b[i : i + 5] for i in range(len(b) - 4)}
    return sum(1 for run in ours if run in theirs) / len(ours | theirs)


def test_the_score_is_the_share_of_common_runs():
    assert runs("abcdef") == {"abcde", "bcdef"}
    assert runs("abc") == {"abc"}
    (pair,) = find_pairs(["abcdef"], ["bcdefg"], 0.1)
    assert pair.score == pytest.approx(1 / 3)
    assert not pair.is_exact


def test_layout_case_and_punctuation_do_not_count():
    assert reduce_text("Find\\ $\\dfrac12$, \\left( X \\right).") == reduce_text("find $\\frac12$ (x)")
    assert reduce_text("a - b") != reduce_text("a + b")
    assert reduce_text(add_instruction("What is 2?", "boxed")) == "what is 2"


def test_a_planted_duplicate_is_found_exactly_and_nearly():
    planted = [
        add_instruction(QUESTIONS[1], "boxed"),
        QUESTIONS[3].replace("+ z^2", "- z^2"),
        "An urn holds three red balls and nobody asks anything.",
    ]
    pairs = find_pairs(planted, QUESTIONS, 0.5)
    assert [(p.first, p.second, p.is_exact) for p in pairs] == [(0, 1, True), (1, 3, False)]
    assert pairs[0].score == 1.0
    assert pairs[1].score == pytest.approx(similarity(planted[1], QUESTIONS[3]))
    assert 0.8 < pairs[1].score < 1


def test_every_pair_and_no_other_is_found_in_a_large_set():
    """5,000 texts go through in three pieces; a slow loop over all pairs is the other computation."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(60)]
    first = [" ".join(draw.choices(words, k=8)) for _ in range(5000)]
    second = [" ".join(draw.choices(words, k=8)) for _ in range(5)] + [first[4321]]
    second.append(" ".join(first[2100].split()[:-1] + ["other"]))
    found = {(pair.first, pair.second): pair.score for pair in find_pairs(first, second, 0.4)}
    cut = [runs(text) for text in second]
    wanted = {}
    for i, text in enumerate(first):
        ours = runs(text)
        for j, theirs in enumerate(cut):
            score = len(ours & theirs) / len(ours | theirs)
            if score >= 0.4:
                wanted[i, j] = score
    assert (4321, 5) in found
    assert (2100, 6) in found
    assert found == pytest.approx(wanted)


def test_empty_sets_and_texts_are_no_pairs():
    assert find_pairs([], QUESTIONS, 0.5) == []
    assert find_pairs(QUESTIONS, [], 0.5) == []
    assert [(p.first, p.second, p.is_exact) for p in find_pairs(["", "x"], [""], 0.5)] == [(0, 0, True)]


def run(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    command = [sys.executable, "-m", "selfdistill.cli", "contamination", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_command_prints_the_pairs_of_two_files(tmp_path):
    rows = [{"prompt": [{"content": text}], "gold": str(i)} for i, text in enumerate(QUESTIONS)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    planted = [{**rows[1], "gold": "another"}, {"prompt": [{"content": "Something else?"}], "gold": "0"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, planted)))
    fields = ("--question", "prompt.0.content", "--answer", "gold")
    done = run("train.jsonl", "test.jsonl", *fields, "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["similarity"], row["exact"], row["same_answer"], row["with"]) == ("1.0", "True", "False", "test.jsonl")
    assert row["question"] == QUESTIONS[1]
    assert "1 exact, 0 near" in done.stderr


def test_the_command_names_what_it_does_not_know(tmp_path):
    done = run("dap", "aime24")
    assert done.returncode == 2
    assert "unknown data set or file `dap`. Did you mean `dapo`" in done.stderr
    done = run("toy_id")
    assert (done.returncode, "neither `compare` nor `exclude`" in done.stderr) == (2, True)


def test_a_data_set_is_compared_as_it_is_made_without_what_it_excludes():
    """One problem of toy_train is one of toy_id; the config excludes it, so it is not in the data set."""
    done = run("toy_train", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert "toy_train (4095 problems) against toy_id, toy_ood: 0 exact, " in done.stderr
    assert not any(json.loads(line)["exact"] for line in done.stdout.splitlines())


def test_a_table_shows_the_best_pairs_and_counts_the_others(tmp_path):
    rows = [{"question": f"What is {n} plus {n}?", "answer": "1"} for n in range(100, 160)]
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    done = run("train.jsonl", "test.jsonl", "--threshold", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 50
    assert "... and 10 more pairs" in done.stderr


@pytest.mark.data
@pytest.mark.skipif(
    not os.environ.get("SELFDISTILL_TEST_DATA"), reason="SELFDISTILL_TEST_DATA is not set: no public data files here"
)
def test_the_coverage_files_have_no_duplicate_and_two_near_ones_in_the_evaluation_sets():
    done = run("seen_512", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert "seen_512 (511 problems) against aime24, aime25, amc23, math500: 0 exact, 2 near" in done.stderr
    roots, distance = (json.loads(line) for line in done.stdout.splitlines())
    assert (roots["with"], roots["same_answer"]) == ("math500", False)
    assert "z^4 - z^2 + 1" in roots["question"]
    assert "z^4 + z^2 + 1" in roots["compared_question"]
    assert (distance["with"], distance["same_answer"]) == ("amc23", True)
    assert "icosahedron" in distance["question"]
