"""Verdicts on a table of hand-made answers: a mathematician's, math-verify's alone, and ours.

tests/golden/grading.csv has one answer a row. `mathematician` was written by hand, looking at no program; the other
three verdicts are what programs say: math-verify on the whole completion, our grader with the rules `math_verify`
(column `plain`) and with `extended` ones. Where any two differ, `explanation` says why, or which convention it is.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from selfdistill.grading import WorkerPool, decide_quickly, extract_box, grade
from selfdistill.grading.agreement import align, decide
from selfdistill.grading.notation import rewrite
from selfdistill.schema.common import MathGrader

TABLE = Path(__file__).parents[1] / "golden" / "grading.csv"
ROWS = list(csv.DictReader(TABLE.open(encoding="utf-8", newline="")))


@pytest.fixture(scope="module")
def pool():
    with WorkerPool() as pool:
        yield pool


def differing(column: str, found: list[str]) -> list[tuple[str, str, str, str]]:
    """(completion, gold, in the table, found) of every row where a verdict is not the table's."""
    return [
        (row["completion"], row["gold"], row[column], verdict)
        for row, verdict in zip(ROWS, found, strict=True)
        if row[column] != verdict
    ]


def agreement(column: str) -> float:
    return sum((row[column] == "correct") == (row["mathematician"] == "correct") for row in ROWS) / len(ROWS)


def test_the_table_is_large_has_no_row_twice_and_explains_every_disagreement():
    assert len(ROWS) >= 1000
    assert len({(row["completion"], row["gold"]) for row in ROWS}) == len(ROWS)
    assert min(sum(row["mathematician"] == verdict for row in ROWS) for verdict in ("correct", "wrong")) >= 250
    for row in ROWS:
        verdicts = {row[name] == "correct" for name in ("mathematician", "math_verify", "plain", "extended")}
        assert bool(row["explanation"]) == (len(verdicts) == 2), row


def test_math_verify_alone_gives_its_column():
    from math_verify import parse, verify

    found = [
        "correct" if verify(parse(f"\\boxed{{{row['gold']}}}"), parse(row["completion"])) else "wrong" for row in ROWS
    ]
    assert differing("math_verify", found) == []


@pytest.mark.parametrize(("column", "rules"), [("plain", "math_verify"), ("extended", "extended")])
def test_our_grader_gives_its_columns(pool, column, rules):
    graded = grade(
        [row["completion"] for row in ROWS],
        [row["gold"] for row in ROWS],
        ["eos"] * len(ROWS),
        MathGrader(rules=rules),
        pool,
    )
    assert differing(column, [item.outcome for item in graded]) == []


def test_extended_rules_agree_with_the_mathematician_more_often(record_property):
    rates = {column: agreement(column) for column in ("math_verify", "plain", "extended")}
    for column, rate in rates.items():
        record_property(column, rate)
        print(f"agreement with the mathematician, {column}: {rate:.1%} of {len(ROWS)}")
    assert rates["extended"] >= 0.97 > rates["math_verify"] > 0.8


def test_extended_rules_never_turn_a_right_verdict_wrong_in_the_table():
    lost = [row for row in ROWS if row["plain"] == "correct" == row["mathematician"] != row["extended"]]
    gained = [row for row in ROWS if row["plain"] != "correct" != row["mathematician"] and row["extended"] == "correct"]
    assert lost == gained == []


def test_plain_rules_differ_from_math_verify_in_what_counts_as_the_answer_alone():
    changed = [row for row in ROWS if (row["plain"] == "correct") != (row["math_verify"] == "correct")]
    assert {row["group"] for row in changed} <= {"whole completions", "integers", "fractions"}
    # One box in its usual form: the verdict is math-verify's, apart from end marks and boxes that never close.
    single = [row for row in changed if row["group"] != "whole completions"]
    assert [row["completion"] for row in single] == [r"\boxed{5.}", r"\boxed{\frac{1}{2}"]


def test_what_is_decided_without_algebra_is_what_the_mathematician_says():
    decided = 0
    for row in ROWS:
        if row["completion"].startswith(r"\boxed{") and row["completion"].endswith("}"):
            verdict = decide(rewrite(row["completion"][7:-1]), rewrite(row["gold"]))
            decided += verdict is not None
            assert verdict in (None, row["mathematician"]) or row["extended"] != row["mathematician"], row
    assert decided > 300


def test_the_fast_path_gives_math_verifys_verdicts():
    decided = 0
    for row in ROWS:
        answer = extract_box(row["completion"])
        quick = decide_quickly(answer, row["gold"]) if answer else None
        if quick is not None and row["plain"] == row["math_verify"]:
            decided += 1
            assert quick == row["math_verify"], row
    assert decided > 150


def test_aligning_keeps_an_answer_that_equals_its_gold():
    for row in ROWS:
        gold = rewrite(row["gold"])
        first, second = align(gold, gold)
        assert first == second
