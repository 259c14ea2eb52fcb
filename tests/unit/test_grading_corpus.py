"""Agreement with hand-made labels on answers that no rule was written for.

tests/golden/grading_corpus.csv holds answers to questions in the style of the benchmarks, right ones in many notations
and plausible wrong ones. `mathematician` was written by hand before any program saw the rows; `before` is the verdict
of the rules `extended` when the corpus was made, `math_verify` and `extended` are those of the grader today.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from selfdistill.grading import WorkerPool, grade
from selfdistill.schema.common import MathGrader

CORPUS = Path(__file__).parents[1] / "golden" / "grading_corpus.csv"
ROWS = list(csv.DictReader(CORPUS.open(encoding="utf-8", newline="")))


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[str]]:
    """Outcomes of today's grader on every row, by rules."""
    with WorkerPool(2) as pool:
        return {
            rules: [
                item.outcome
                for item in grade(
                    [row["completion"] for row in ROWS],
                    [row["gold"] for row in ROWS],
                    ["eos"] * len(ROWS),
                    MathGrader(rules=rules, timeout_seconds=20),
                    pool,
                )
            ]
            for rules in ("math_verify", "extended")
        }


def agreement(found: list[str]) -> float:
    pairs = zip(found, ROWS, strict=True)
    return sum((item == "correct") == (row["mathematician"] == "correct") for item, row in pairs) / len(ROWS)


def accepted_wrongly(found: list[str]) -> list[tuple[str, str]]:
    return [
        (row["completion"], row["gold"])
        for item, row in zip(found, ROWS, strict=True)
        if item == "correct" != row["mathematician"]
    ]


def test_the_corpus_is_large_balanced_and_repeats_nothing():
    assert len(ROWS) >= 600
    assert len({(row["completion"], row["gold"]) for row in ROWS}) == len(ROWS)
    assert min(sum(row["mathematician"] == label for row in ROWS) for label in ("correct", "wrong")) >= 300
    for row in ROWS:
        assert bool(row["explanation"]) == ((row["extended"] == "correct") != (row["mathematician"] == "correct")), row


@pytest.mark.parametrize("rules", ["math_verify", "extended"])
def test_the_grader_gives_its_column(verdicts, rules):
    differing = [
        (row["completion"], row["gold"], row[rules], found)
        for row, found in zip(ROWS, verdicts[rules], strict=True)
        if row[rules] != found
    ]
    assert differing == []


def test_extended_rules_agree_in_at_least_95_percent_and_accept_nearly_nothing_wrong(verdicts, record_property):
    found = {**verdicts, "before": [row["before"] for row in ROWS]}
    for name, outcomes in found.items():
        record_property(name, agreement(outcomes))
        print(f"{name}: {agreement(outcomes):.1%} of {len(ROWS)}, {len(accepted_wrongly(outcomes))} accepted wrongly")
    assert agreement(found["extended"]) >= 0.95
    assert agreement(found["extended"]) > max(agreement(found["before"]), agreement(found["math_verify"]))
    # The one convention: square brackets around what is no interval are a vector's.
    assert accepted_wrongly(found["extended"]) == [(r"\boxed{[1,\frac{1}{2}]}", r"(1,\frac{1}{2})")]
