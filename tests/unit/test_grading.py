"""Grading: where the answer stands, and what is decided without a process."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.grading import Grade, decide_quickly, extract_box, extract_choice, grade
from selfdistill.schema.common import ChoiceGrader, MathGrader
from selfdistill.schema.errors import UserError

MATHS = MathGrader()


@pytest.fixture
def no_process(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


class Recorder:
    """Stands in for the pool: remembers what it was asked, and finds everything wrong."""

    def __init__(self):
        self.pairs = []

    def compare(self, pairs, timeout_seconds, rules):
        self.pairs += pairs
        return ["wrong"] * len(pairs)


def grade_one(text, gold, grader=MATHS, stop="eos", pool=None):
    return grade([text], [gold], [stop], grader, pool)[0]


# --- extraction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}", "5"),
        ("<think> so 8 </think> \\boxed{ 0 }", "0"),
        (r"\boxed{1} then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right"),
        (r"\boxed{a\\}", r"a\\"),
        ("\\boxed{1\n}", "1"),
        (r"\boxed{: 5.}", "5"),
        (r"\boxed{5/}", "5"),
        (r"\boxed{5} was asked in a \boxed manner", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{ }", ""),
        (r"\boxed{5} and \boxed{6", ""),
        (r"\boxed 5", ""),
        ("5", ""),
        ("", ""),
    ],
)
def test_the_last_box_is_the_answer(text, expected):
    assert extract_box(text) == expected


def test_the_box_must_lie_wholly_inside_the_scope():
    box = r"\boxed{5}"
    assert extract_box(box + "x" * 91, 100) == "5"
    assert extract_box(box + "x" * 92, 100) == ""
    assert extract_box(r"\boxed{1}" + "x" * 200 + box, 100) == "5"


def test_deep_nesting_and_megabytes_are_read_at_once():
    start = time.perf_counter()
    assert extract_box("\\boxed{" + "{" * 10_000 + "}" * 10_000 + "}") == "{" * 10_000 + "}" * 10_000
    assert extract_box("\\boxed{" * 10_000) == ""
    assert len(extract_box("\\boxed{" + "1" * 5_000_000 + "}")) == 5_000_000
    assert time.perf_counter() - start < 5


balanced = st.recursive(
    st.text(alphabet="ab1+ \\", max_size=3).map(lambda text: text.replace("\\", r"\}")),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)


@given(st.text(max_size=20), balanced)
def test_any_balanced_content_is_found_after_any_text(before, content):
    assert extract_box(before + " \\boxed{" + content + "}") == content.strip()


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{D: 5.3 mol}", "D"),
        (r"\boxed{(A)}", "A"),
        (r"answer: A ... \boxed{B}", "B"),
        (r"Answer: C and \boxed{5}", "C"),
        ("answer: A\nAnswer: B", "B"),
        ("**Answer:** D", "D"),
        ("The answer is: (C)", "C"),
        ("<answer>\nA\n</answer>", "A"),
        ("answer: a ring", ""),
        ("Answer: Benzene", ""),
        (r"\boxed{Z}", ""),
        ("B", ""),
    ],
)
def test_the_chosen_letter_is_found(text, letter):
    assert extract_choice(text, "ABCD") == letter


# --- decided without a process ---------------------------------------------------------------------------------------


def test_toy_completions_never_start_a_process(no_process):
    texts = ["<think> so 8 </think> \\boxed{ 0 }", "<think> so 8 </think> \\boxed{ 8 }", "<think> maybe", "\\boxed{ }"]
    graded = grade(texts, ["0"] * 4, ["eos", "eos", "length", "eos"], MathGrader(requires_eos=True))
    assert graded == [
        Grade("correct", 1.0, "0"),
        Grade("wrong", 0.0, "8"),
        Grade("unparsed", 0.0, ""),
        Grade("unparsed", 0.0, ""),
    ]


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("007", "7", "correct"),
        ("-0", "0", "correct"),
        ("+5", "5", "correct"),
        ("-5", "5", "wrong"),
        (r"\text{east}", r"\text{east}", "correct"),
        ("1" * 257, "1", "unparsed"),
        ("1" * 257, "1" * 257, "correct"),
        ("5.0", "5", "correct"),
        ("5.1", "5", "wrong"),
        ("5.000001", "5", None),
        ("1,000", "1000", None),
        ("5", r"\frac{10}{2}", "correct"),
        (r"\dfrac{1}{3}", r"\frac {1}{3}", "correct"),
        ("0.333333", r"\frac{1}{3}", None),
        ("0.33", r"\frac{1}{3}", "wrong"),
        ("1/0", "5", None),
        ("(2, 5]", "(2,5]", "correct"),
        ("1, 234", "1,234", None),
        (r"\ (", r"\(", None),
        ("٣", "3", None),
    ],
)
def test_the_fast_path_decides_what_is_certain(answer, gold, outcome):
    assert decide_quickly(answer, gold) == outcome


def test_the_fast_path_agrees_with_math_verify_on_integers():
    from math_verify import parse, verify

    answers = ["0", "-0", "+0", "7", "007", "+7", "-7", "-007", "12", "1000", "999999999999999999999", "21"]
    for answer in answers:
        for gold in ["0", "7", "-7", "12", "1000", "999999999999999999999", "+21"]:
            truth = verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))
            assert decide_quickly(answer, gold) == ("correct" if truth else "wrong"), (answer, gold)


NUMBERS = [
    "0", "-0", "1", "-1", "7", "12", "100000000000000", "0.5", ".5", "-0.5", "0.50", "5.0", "-7.0", "0.333333", "0.33",
    "0.333334", "0.666667", "0.1", "0.000001", "0.00001", "0.12", "999999999.999999", "1/2", "2/4", "-1/2", "1/3",
    "-7/1", r"\frac{1}{2}", r"-\frac{1}{2}", r"\frac{2}{4}", r"\frac{1}{3}", r"\frac{2}{3}", r"\frac{24}{2}",
    r"\frac{0}{5}", r"\dfrac{1}{2}", r"\frac {1} {2}", "- 1", "1 / 2", "3/25", "700/100",
]  # fmt: skip


def test_the_fast_path_agrees_with_math_verify_on_every_pair_of_numbers():
    from math_verify import parse, verify

    parsed = {number: parse(f"\\boxed{{{number}}}") for number in NUMBERS}
    decided = 0
    for answer in NUMBERS:
        for gold in NUMBERS:
            quick = decide_quickly(answer, gold)
            if quick is not None:
                decided += 1
                assert quick == ("correct" if verify(parsed[gold], parsed[answer]) else "wrong"), (answer, gold)
    assert decided > 0.95 * len(NUMBERS) ** 2


def test_importing_grading_loads_nothing_heavy():
    code = (
        "import sys, selfdistill.grading\n"
        "print([m for m in ('math_verify', 'sympy', 'pydantic', 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_equal_pairs_are_compared_once_and_results_keep_their_places():
    recorder = Recorder()
    texts = [r"\boxed{x}", r"\boxed{1}", r"\boxed{ x }", r"\boxed{x}", r"\boxed{y}"]
    graded = grade(texts, ["a", "1", "a", "b", " a "], ["eos"] * 5, MATHS, recorder)
    assert recorder.pairs == [("x", "a"), ("x", "b"), ("y", "a")]
    assert [item.outcome for item in graded] == ["wrong", "correct", "wrong", "wrong", "wrong"]
    assert [item.extracted for item in graded] == ["x", "1", "x", "x", "y"]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [(r"\boxed{7}", "wrong"), (r"\boxed{1/2}", "wrong"), ("7", "unparsed"), (r"\boxed{", "unparsed")],
)
def test_a_cut_off_completion_does_not_count_where_eos_is_required(no_process, text, outcome):
    assert grade_one(text, "7", MathGrader(requires_eos=True), "length").outcome == outcome


def test_a_cut_off_completion_counts_where_eos_is_not_required(no_process):
    assert grade_one(r"\boxed{7} and so", "7", MATHS, "length") == Grade("correct", 1.0, "7")


def test_the_training_reward_looks_at_the_last_characters_only(no_process):
    text = r"\boxed{7}" + " " * 100
    assert grade_one(text, "7").reward == 1.0
    assert grade_one(text, "7", MathGrader(scope_characters=100)) == Grade("unparsed", 0.0, "")


def test_choices_are_graded_without_a_process(no_process):
    grader = ChoiceGrader(choices="ABCD", requires_eos=True)
    texts = [r"\boxed{B}", "Answer: C", "none", r"\boxed{b}", "dunno"]
    graded = grade(texts, ["B", "b", "B", "B", "B"], ["eos", "eos", "eos", "length", "length"], grader)
    assert [item.outcome for item in graded] == ["correct", "wrong", "unparsed", "wrong", "unparsed"]
    assert [item.extracted for item in graded] == ["B", "C", "", "B", ""]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="unequal lengths"):
        grade(["a"], [], ["eos"], MATHS)
    with pytest.raises(ValueError, match="unknown stop reasons"):
        grade(["a"], ["1"], ["stop"], MATHS)
    with pytest.raises(UserError, match="column answer"):
        grade_one(r"\boxed{1}", " ")
    with pytest.raises(UserError, match="letters ABCD"):
        grade_one(r"\boxed{A}", "E", ChoiceGrader(choices="ABCD"))
    assert grade([], [], [], MATHS) == []
