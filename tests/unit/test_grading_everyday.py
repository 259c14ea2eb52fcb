"""Everyday forms of a choice and of an answer line, and the paper's rules beside ours."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.grading import WorkerPool, extract_answer_line, extract_choice, grade
from selfdistill.plan.settings import load_config
from selfdistill.schema.common import ChoiceGrader, MathGrader
from selfdistill.schema.config import BenchmarkEntry, DatasetEntry, ModelEntry
from selfdistill.schema.shared import GradingFields

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests/golden/grading.csv"
SOURCE = {
    "kind": "asset",
    "asset": "math_evaluation",
    "file": "aime24.parquet",
    "fields": {"question": "q", "answer": "a"},
}


@pytest.mark.parametrize(
    "text",
    [
        "The answer is E.", "I choose option (E)", "option (E)", r"\boxed{E - a ring}", r"\boxed{\boldsymbol{E}}",
        r"\boxed{\bm{E}}", r"\boxed{\textbf{(E) }a ring}", r"\boxed{\text{option E}}", r"\boxed{E: 5.3 mol}",
        "The correct answer is **E**.", "Answer:\nE", "The answer is (E), since A and B are not.", "### Answer\n\nE",
        r"So the answer is \textbf{(E)}", "the best choice is E", "The answer is option E: a ring", "I pick E.",
        "Final answer: $E$", "Option E is the correct answer, not A.", "Answer: B. Wait, the answer is E.",
    ],
)  # fmt: skip
def test_a_choice_is_found_in_everyday_words(text):
    assert extract_choice(text, "ABCDEFGHIJ") == "E"


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{A, B}", r"\boxed{A or B}", r"\boxed{A/B}", r"\boxed{A and B}", "The answer is A or B.",
        "Answer: A and B", "The answer is A, B", "Option A is bad, option B too.", "The answer is a ring.",
        "The answer isn't A", "The answer is A's ring", "",
    ],
)  # fmt: skip
def test_two_letters_and_prose_choose_nothing(text):
    assert extract_choice(text, "ABCDEFGHIJ") == ""


@pytest.mark.parametrize(
    "text",
    [
        "Answer:\n42", "Answer:\n\n$42$", "Answer: $42$ (since $6 \\cdot 7 = 42$)", "Answer: 41. No, my answer is 42.",
        "**Final Answer**\n\n42", "### Answer\n42", "#### 42", "The final answer is: 42", "Final answer: **42**",
        r"The answer is \(42\).", "Thus the answer is 42, because it is.", "Answer: 42.", "answer = 42", "Answer - 42",
        "ANSWER: 42", "<answer>42</answer>", "The answer to the problem is 42.", "The answer is therefore 42.",
        "the answer should be 42", "Therefore the answer is\n\\[\n42\n\\]", "Answer (final): `42`",
        "The answer is 42. The answer is unique.",
    ],
)  # fmt: skip
def test_an_answer_line_is_found_in_everyday_forms(text):
    assert extract_answer_line(text) == "42"


@pytest.mark.parametrize("text", ["The answer is not known.", "I have no answer", "The answer isn't 42", "answers"])
def test_a_denial_is_no_answer_line(text):
    assert extract_answer_line(text) == ""


@pytest.mark.parametrize(
    ("text", "statement", "published"),
    [
        ("Think.\n<answer>B</answer>", "correct", "correct"),
        ("<answer> B </answer>", "correct", "correct"),
        ("<answer>A</answer> no: <answer>B", "correct", "correct"),
        ("B", "unparsed", "correct"),  # Without tags the official reward takes the whole text.
        (r"\boxed{B}", "correct", "wrong"),
        ("The answer is B.", "correct", "wrong"),
        ("<answer>b</answer>", "unparsed", "wrong"),
        (r"<answer>A</answer> \boxed{B}", "correct", "wrong"),
    ],
)
def test_the_published_choice_reward_reads_what_stands_in_answer_tags(text, statement, published):
    for rules, expected in (("statement", statement), ("paper_reward", published)):
        assert grade([text], ["B"], ["eos"], ChoiceGrader(choices="ABCD", rules=rules))[0].outcome == expected


def test_the_published_reward_hands_math_verify_the_content_of_the_box_alone():
    """[C verl/utils/reward_score/feedback/math.py]: equal texts, else verify(parse(gold), parse(content))."""
    from math_verify import parse, verify

    rows = [row for row in csv.DictReader(TABLE.open(encoding="utf-8", newline="")) if row["completion"][7:-1]][::9]
    answers = [row["completion"][7:-1] for row in rows if row["completion"].startswith(r"\boxed{")]
    golds = [row["gold"] for row in rows if row["completion"].startswith(r"\boxed{")]

    def published(answer: str, gold: str) -> bool:
        if answer == gold:
            return True
        try:
            return bool(verify(*(parse(text, parsing_timeout=None) for text in (gold, answer)), timeout_seconds=None))
        except Exception:
            return False

    with WorkerPool() as pool:
        found, ours = (
            [
                item.outcome == "correct"
                for item in grade(
                    [f"\\boxed{{{answer}}}" for answer in answers],
                    golds,
                    ["eos"] * len(golds),
                    MathGrader(rules=rules, timeout_seconds=20),
                    pool,
                )
            ]
            for rules in ("paper_reward", "math_verify")
        )
    assert found == [published(*pair) for pair in zip(answers, golds, strict=True)]
    assert len(found) > 90 and found != ours


def test_rules_are_extended_in_the_settings_and_in_the_command_unless_they_say_another(tmp_path):
    assert BenchmarkEntry(dataset="a").grader.rules == "extended"
    assert BenchmarkEntry(dataset="a", grader={"kind": "math", "requires_eos": True}).grader.rules == "extended"
    assert ModelEntry.model_fields["reward"].default.rules == "extended"
    assert DatasetEntry(source=SOURCE, reward={"kind": "math"}).reward.rules == "extended"
    stated = BenchmarkEntry(dataset="a", grader={"kind": "math", "rules": "math_verify"}).grader
    assert stated.rules == "math_verify"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"answer": "3,5", "completion": r"\boxed{3}, \boxed{5}"}) + "\n")
    result = CliRunner().invoke(app, ["grade", str(path), "--format", "json"])
    assert json.loads(result.stdout.splitlines()[0])["outcome"] == "correct", result.output


def test_a_spec_without_rules_means_those_of_its_time_and_a_new_one_names_its_own():
    old = {"kind": "math", "scope_characters": None, "requires_eos": False, "timeout_seconds": 5.0}
    read = GradingFields(grader=old, seed=0)
    assert read.grader.rules == "math_verify" and read.identity()["grader"] == old
    new = GradingFields(grader=BenchmarkEntry(dataset="a").grader, seed=0)
    assert new.identity()["grader"] == old | {"rules": "extended"}
    stated = BenchmarkEntry(dataset="a", grader={"kind": "math", "rules": "math_verify"}).grader
    assert GradingFields(grader=stated, seed=0).identity() == read.identity()


def test_every_shipped_maths_grader_names_its_rules():
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    graders = [item.grader for item in config.benchmarks.values()] + [item.reward for item in config.models.values()]
    rules = {grader.rules for grader in graders if grader.kind == "math"}
    assert rules == {"math_verify"}
