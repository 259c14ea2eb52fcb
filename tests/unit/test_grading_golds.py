"""Gold answers: the text itself is always right, and golds that nothing can read are counted as such."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.contexts import Attempt, feedback_text
from selfdistill.grading import OUTCOMES, WorkerPool, grade
from selfdistill.grading.extraction import strip_spaces
from selfdistill.schema.common import MathGrader
from selfdistill.stages.shared.generate import describe

ALL_RULES = ("extended", "math_verify", "paper_reward")
PIECES = st.sampled_from(
    [*"0123456789.,;:/!?-+*=^_{}()[]|<>$%&~ \"'`#xyeπ½°。，、个é\u0301\u200b", "\\", "\\\\", r"\frac", r"\frac{1}{2}",
     r"\sqrt", r"\text{", r"\text{ or }", r"\{", r"\}", r"\left(", r"\right)", r"\,", r"\ ", r"\quad", r"\%", r"\pi",
     r"\boxed{", r"\pmod{7}", " and ", "Yes", "no", "2,3", "1,000", "answer", "\n", "\t"]
)  # fmt: skip
GOLDS = st.lists(PIECES, min_size=1, max_size=14).map("".join).filter(strip_spaces)
END_MARKS = [
    "5.", "5;", "5,", "5:", "5!", "12/", "(2,3).", "(2,3);", "Yes.", "No!", "x=5.", r"\frac{1}{2}.", r"\frac{1}{2};",
    r"\frac{1}{2}/", r"\text{Yes.}", r"\text{5.}", "$5$.", "$5.$", "5 .", "5. ", ":5", ": 5.", "{1,2}.", "...", "1. 2.",
    r"5\\", r"\pi.", "a/", "12//", "5..", "/", ".", ":",
]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    with WorkerPool() as pool:
        yield pool


def outcome(completion: str, gold: str, pool: WorkerPool, rules: str = "extended", **settings) -> str:
    (found,) = grade([completion], [gold], ["eos"], MathGrader(rules=rules, timeout_seconds=10, **settings), pool)
    return found.outcome


@example(gold="\\text{\n", rules="extended", before="")
@settings(max_examples=400, deadline=None)
@given(gold=GOLDS, rules=st.sampled_from(ALL_RULES), before=st.sampled_from(["", "So ", r"First \boxed{1}. Then "]))
def test_a_completion_that_boxes_the_gold_letter_by_letter_is_correct(pool, gold, rules, before):
    assert outcome(f"{before}\\boxed{{{gold}}}", gold, pool, rules) == "correct"


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize("gold", END_MARKS)
def test_a_gold_with_an_end_mark_is_reached_by_its_own_text(pool, gold, rules):
    assert outcome(f"\\boxed{{{gold}}}", gold, pool, rules) == "correct"
    assert outcome(f"\\boxed{{{gold}}}", gold, pool, rules, scope_characters=100) == "correct"


@pytest.mark.parametrize("rules", ["extended", "math_verify"])
@pytest.mark.parametrize(
    ("gold", "bare", "other"),
    [("5.", "5", "6"), ("5;", "5", "6"), ("12/", "12", "1"), ("(2,3).", "(2,3)", "(3,2)"), ("5,", "5", "50"),
     (r"\frac{1}{2}.", "0.5", "2"), ("5.", "5.0", "0.5")],
)  # fmt: skip
def test_the_end_mark_of_a_gold_is_no_part_of_it(pool, gold, bare, other, rules):
    assert outcome(f"\\boxed{{{bare}}}", gold, pool, rules) == "correct"
    assert outcome(f"\\boxed{{{other}}}", gold, pool, rules) != "correct"


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize("gold", ["???", r"\frac{1}{", "∎", "$$"])
def test_a_gold_that_nothing_can_read_is_counted_as_such(pool, gold, rules):
    assert outcome(r"\boxed{5}", gold, pool, rules) == "unreadable_gold"
    assert outcome(r"\boxed{x+1}", gold, pool, rules) == "unreadable_gold"
    assert outcome("no box", gold, pool, rules) == "unparsed"


@pytest.mark.parametrize("gold", [r"\text{Yes}", r"\text{ellipse}", "Yes", "(2,3)", "x=5", r"\{1,2\}", "5."])
def test_a_gold_in_words_is_readable(pool, gold):
    assert outcome(r"\boxed{5+x^2}", gold, pool) == "wrong"
    assert outcome(r"\boxed{\text{no}}", gold, pool) == "wrong"


def test_summaries_count_every_outcome(tmp_path):
    rows = [
        {"step": 0, "outcome": name, "reward": float(name == "correct"), "completion_tokens": 3, "stop_reason": "eos"}
        for name in (*OUTCOMES, "unreadable_gold")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rollouts.parquet")
    counts = describe(tmp_path / "rollouts.parquet")[0]["outcomes"]
    assert counts == {**dict.fromkeys(OUTCOMES, 1), "unreadable_gold": 2}
    assert sum(counts.values()) == len(rows)


def test_the_command_counts_unreadable_golds_and_lets_their_answers_vote(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"answer": "???", "completion": [r"\boxed{5}", r"\boxed{5}", r"\boxed{???}"]}) + "\n")
    result = CliRunner().invoke(app, ["grade", str(path), "--format", "json"])
    assert result.exit_code == 0, result.output
    totals = json.loads(result.stdout.splitlines()[-1])["totals"]
    assert (totals["unreadable_gold"], totals["correct"]) == (2, 1)
    assert "maj@3" in json.dumps(totals)


def test_feedback_on_an_unreadable_gold_blames_no_answer():
    attempt = Attempt(0, 0, r"\boxed{5}", 0.0, "unreadable_gold", "eos")
    assert "compared" in feedback_text(attempt)
    assert "wrong" not in feedback_text(attempt)
