"""Notation and agreement: single rules, that integers keep math-verify's verdicts, and that nothing can hang."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.grading import WorkerPool, decide_quickly, extract_answer_line, extract_last_number, grade
from selfdistill.grading.agreement import align, decide
from selfdistill.grading.notation import rewrite
from selfdistill.grading.quick import MAX_ANSWER_CHARACTERS
from selfdistill.schema.common import MathGrader

EXTENDED = MathGrader(rules="extended")


@pytest.fixture(scope="module")
def pool():
    with WorkerPool() as pool:
        yield pool


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"1\,234\,567", "1234567"),
        (r"1{,}234", "1234"),
        (r"11,\! 111", "11111"),
        ("1,234", "1234"),
        ("(1,234)", "(1,234)"),
        ("(1,034)", "(1034)"),
        (r"\{100,200\}", r"\{100,200\}"),
        (r"\frac{1,500}{7}", r"\frac{1500}{7}"),
        ("1 234 56", "1 234 56"),
        ("3.141 592", "3.141 592"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"a\\,b", r"a\\,b"),
        ("90°", r"90^\circ"),
        ("2.5e-3", r"2.5\times 10^{-3}"),
        ("2e", "2e"),
        (r"0.1\overline{6}", r"\frac{15}{90}"),
        (r"-12\frac{1}{2}\%", r"-\frac{25}{2}\%"),
        (r"\text{12 apples}", "12 apples"),
        (r"\text{twelve}", r"\text{twelve}"),
        (r"x \in [1,2)", "[1,2)"),
        (r"x \in \{1,2\}", r"x \in \{1,2\}"),
        ("5.;,", "5"),
        (".", "."),
        ("", ""),
    ],
)
def test_other_notations_are_rewritten_and_the_rest_is_left(text, expected):
    assert rewrite(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("0.50", ".5", "correct"),
        ("0.0000001", "0.0000002", "wrong"),
        ("52_8", "52_{8}", "correct"),
        ("52_8", "42_{10}", "wrong"),
        ("a_1", "a_2", None),
        ("5:00", r"5:00 \text{ p.m.}", "correct"),
        (r"5:00\text{ am}", r"5:00 \text{ p.m.}", "wrong"),
        ("6:20", "3:10", None),
        ("25:00", "1:00", None),
        ("The Ellipse", r"\text{ellipse}", "correct"),
        ("xy", "yx", None),
        (r"\text{xy}", "yx", "wrong"),
        (r"\{1,2\}", "(1,2)", "wrong"),
        (r"\{(1,2)\}", "(1,2)", None),
        ("[1,2]", "(1,2)", None),
        ("1/2", "0.5", None),
    ],
)
def test_what_needs_no_algebra_is_decided(answer, gold, verdict):
    assert decide(answer, gold) == verdict


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("60 miles per hour", "60", ("60", "60")),
        (r"500\text{ cm}", r"5\text{ m}", (r"(500)\cdot\frac{1}{100}", "5")),
        ("2 sin", "2", ("2 sin", "2")),
        (r"\frac{1}{2} ac", "3ab", (r"\frac{1}{2}\cdot {a}\cdot {c}", r"3\cdot {a}\cdot {b}")),
        ("3s", "3t", ("3{s}", "3{t}")),
        ("5s", "5", ("5s", "5")),
        ("(1,2)", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", (r"\begin{pmatrix}1 \\ 2\end{pmatrix}",)),
    ],
)
def test_an_answer_is_read_in_the_sense_of_its_gold(answer, gold, expected):
    assert align(answer, gold)[: len(expected)] == expected


@given(st.integers(-(10**25), 10**25), st.integers(-(10**25), 10**25), st.sampled_from(["", "+", "00"]))
def test_integers_get_the_same_verdict_under_both_rules(answer, gold, prefix):
    written = prefix + str(answer) if answer >= 0 else str(answer)
    plain, extended = (
        grade([f"\\boxed{{{written}}}"], [str(gold)], ["eos"], MathGrader(rules=rules))
        for rules in ("math_verify", "extended")
    )
    assert plain == extended
    assert plain[0].outcome == decide_quickly(written, str(gold)) == ("correct" if answer == gold else "wrong")


PIECES = st.sampled_from(
    [*"0123456789.,;:-+^_{}[]()|/% $~*`'", "\\", "\\\\", r"\frac", r"\text{", r"\overline{", r"\,", r"\!", ",\\!",
     r"\left", r"\in", r"\%", r"\circ", "1,000", "miles", "x", "E3", "√", "½", "é", "\x00", "\ud800", "\n"]
)  # fmt: skip
ANSWERS = st.lists(PIECES, max_size=60).map(lambda pieces: "".join(pieces)[:MAX_ANSWER_CHARACTERS])


@given(ANSWERS, ANSWERS)
def test_rules_accept_any_text_and_rewriting_is_stable(answer, gold):
    first, second = rewrite(answer), rewrite(gold)
    assert decide(first, second) in ("correct", "wrong", None)
    assert decide(first, first) == "correct"
    assert all(isinstance(text, str) for text in align(first, second))
    assert len(first) <= 12 * MAX_ANSWER_CHARACTERS


@pytest.mark.parametrize(
    "piece",
    ["1", "1,", "1{,}", ",\\!1", "\\", "\\,", "{", "(", "\\text{", "1 ", "a ", "1e", ".", "0.\\overline{", "√1", "**",
     "-", "^o", "\\frac{1}{", "1,000", "½", "x\\in "],
)  # fmt: skip
def test_no_short_answer_takes_long(piece):
    for text in (piece * MAX_ANSWER_CHARACTERS, "1" + piece * MAX_ANSWER_CHARACTERS, piece * 100 + "!" * 56):
        text = text[:MAX_ANSWER_CHARACTERS]
        start = time.process_time()
        first = rewrite(text)
        decide(first, first + "x")
        align(first, "5")
        align(first, first)
        # Some tenths of a millisecond each; a pattern that backtracks would need longer than the universe.
        assert time.process_time() - start < 1.0


@settings(max_examples=60, deadline=None)
@given(text=ANSWERS, gold=st.sampled_from(["5", r"\frac{1}{2}", "(1,2]", r"\text{even}", "3t", "x = 2"]))
def test_any_answer_gets_an_outcome_under_extended_rules(pool, text, gold):
    (found,) = grade(["\\boxed{" + text + "}"], [gold], ["eos"], MathGrader(rules="extended", timeout_seconds=2), pool)
    assert found.outcome in {"correct", "wrong", "unparsed", "timeout"}


def test_different_spellings_of_one_answer_are_compared_once():
    class Recorder:
        asked = []

        def compare(self, pairs, timeout_seconds, rules):
            assert rules == "extended"
            self.asked += pairs
            return ["correct"] * len(pairs)

    recorder = Recorder()
    texts = [rf"\boxed{{{answer}}}" for answer in (r"\dfrac{x}{4}", r"\tfrac{x}{4}", r"\frac{x}{4}", r"\frac{x}{4}.")]
    graded = grade(texts, [r"0.25x+0"] * 4, ["eos"] * 4, EXTENDED, recorder)
    assert recorder.asked == [(r"\frac{x}{4}", "0.25x+0")]
    assert [item.outcome for item in graded] == ["correct"] * 4
    assert graded[0].extracted == r"\dfrac{x}{4}"


# --- fallbacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 5", "5"),
        ("**Answer:** $\\frac12$", "\\frac12"),
        ("The answer is 5.\nGood luck", "5"),
        ("the final answer is: 7", "7"),
        ("Answer: 4\nWait. Answer: 5", "5"),
        ("an answer", ""),
        ("", ""),
    ],
)
def test_an_answer_line_is_read(text, answer):
    assert extract_answer_line(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("first 3, then 12.5.", "12.5"), ("about 1,234 of them", "1,234"), ("x2 and -7", "-7"), ("none", ""),
        ("version 1.2.3", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_last_number_is_read(text, number):
    assert extract_last_number(text) == number


def test_a_fallback_is_used_only_where_there_is_no_box():
    for fallback, text, expected in (
        ("none", "Answer: 5", "unparsed"),
        ("answer_line", "Answer: 5", "correct"),
        ("answer_line", "it is 5", "unparsed"),
        ("last_number", "it is 5", "correct"),
        ("last_number", r"\boxed{4} not 5", "wrong"),
    ):
        assert grade([text], ["5"], ["eos"], MathGrader(fallback=fallback))[0].outcome == expected
    scoped = MathGrader(fallback="last_number", scope_characters=5)
    assert grade(["5" + " " * 9], ["5"], ["eos"], scoped)[0].outcome == "unparsed"


def test_later_settings_of_the_grader_keep_the_identity_of_earlier_artifacts():
    assert MathGrader().identity() == {
        "kind": "math", "scope_characters": None, "requires_eos": False, "timeout_seconds": 5.0,
    }  # fmt: skip
    assert MathGrader(rules="extended", fallback="last_number").identity()["rules"] == "extended"


def test_megabytes_of_answer_lines_are_read_at_once():
    start = time.process_time()
    assert extract_answer_line("answer " * 300_000) == ""
    assert extract_answer_line("answer is" + " " * 2_000_000) == ""
    assert extract_last_number("1," * 1_000_000) == "1"
    assert extract_last_number("1" * 2_000_000) == "1" * 2_000_000
    assert extract_last_number("-" * 2_000_000) == ""
    assert time.process_time() - start < 10
