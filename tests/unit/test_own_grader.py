"""Graders of the user's own: what a function may return, what stops a job, and what a key depends on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from selfdistill.grading import WorkerPool, check_machine, grade
from selfdistill.plan.own_graders import code_of
from selfdistill.plan.planner import Planner
from selfdistill.plan.settings import load_config
from selfdistill.schema.assets import read_assets
from selfdistill.schema.common import PythonGrader
from selfdistill.schema.errors import UserError
from selfdistill.schema.outside import GRADER_FORMS
from selfdistill.stages.shared.outside_code import check_grader

REWARDS = """
import math, re, sys, time
import numpy as np

def kinds(completion, answer):
    print("a line on standard output is no verdict")
    return {"yes": True, "no": np.bool_(False), "part": np.float32(0.75), "low": 0.25, "none": None,
            "equal": completion + answer == "equalequal"}[completion]

def hangs(completion, answer):
    while completion == "hang":
        time.sleep(0.01)
    return True

def odd(completion, answer):
    return {"nan": math.nan, "text": "1", "two": 2, "list": [1], "many": np.ones(2)}[completion]

def judge(completion, answer, question):
    return (int(re.search("[0-9]+", question)[0]) + len(completion.split()) % 2) / 10

def by_name(completion, answer, *, question): return judge(completion, answer, question)
def may_do_without(completion, answer, question=""): return question == ""
def other_names(question, text): return [question, text] == ["yes", "a"]
def other_third(completion, answer, problem): return True

def one(completion): return True
three = lambda a, b, c: True
number = 3
rest = lambda *texts: True
"""


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """The project folder, with the functions above in own_rewards.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    return tmp_path


def grader(function: str, **settings) -> PythonGrader:
    return PythonGrader(function=f"own_rewards:{function}", code="", **settings)


def graded(texts, using, reasons=None, answers=None, questions=()):
    with WorkerPool() as pool:
        return grade(texts, answers or ["a"] * len(texts), reasons or ["eos"] * len(texts), using, pool, questions)


def test_what_a_function_may_return(rewards):
    found = graded(
        ["yes", "no", "part", "low", "none", "equal", "yes"],
        grader("kinds", requires_eos=True),
        ["eos"] * 6 + ["length"],
        ["a"] * 5 + ["equal", "a"],
    )
    assert [(g.outcome, g.reward) for g in found] == [
        ("correct", 1.0), ("wrong", 0.0), ("correct", 0.75), ("wrong", 0.25), ("unparsed", 0.0), ("correct", 1.0),
        ("wrong", 0.0),
    ]  # fmt: skip


def test_a_call_beyond_the_limit_is_a_timeout_and_the_rest_goes_on(rewards):
    started = time.monotonic()
    found = graded(["hang", "else"], grader("hangs", timeout_seconds=0.5))
    assert [(g.outcome, g.reward) for g in found] == [("timeout", 0.0), ("correct", 1.0)]
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        (
            "nan",
            "grader own_rewards:odd: returned 'nan' (float) for the completion 'nan' and the answer 'a': return tr",
        ),
        ("text", "returned '1' (str)"),
        ("two", "returned '2' (int)"),
        ("list", "returned '[1]' (list)"),
        ("many", "ValueError: can only convert an array of size 1 to a Python scalar"),
        ("unknown\nword", "KeyError: 'unknown\\nword' ("),
    ],
)
def test_anything_else_stops_the_job_with_one_line(rewards, completion, message):
    with pytest.raises(UserError) as error:
        graded([completion], grader("odd"))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "at_run", "at_plan"),
    [
        ("own_rewards:missing", "own_rewards has no function `missing`.", "own_rewards has no function `missing`"),
        ("own_rewards:number", "own_rewards has no function `number`.", None),
        ("own_rewards:one", f"it {GRADER_FORMS} (too many positional arguments)", f"one {GRADER_FORMS} ("),
        ("own_rewards:three", f"it {GRADER_FORMS} (missing a required argument: 'c')", None),
        ("own_rewards:other_third", f"it {GRADER_FORMS} (missing a", f"other_third {GRADER_FORMS} ("),
        ("nowhere.at:all", "importing nowhere.at failed: ModuleNotFoundError", "reading nowhere.at failed: ModuleNotF"),
        ("nowhere:all", "Put nowhere into the project folder, or install it.", "there is no module nowhere. Put nowhe"),
        ("broken:f", "importing broken failed: SyntaxError", "reading broken failed: SyntaxError"),
        ("raises:f", "importing raises failed: ZeroDivisionError: division by zero", None),
        ("leaves:f", "SystemExit: 3", None),
    ],
)
def test_a_function_that_cannot_be_called_is_seen_before_anything_is_sampled(rewards, function, at_run, at_plan):
    for name, text in {"broken": "def f(:", "raises": "1 / 0", "leaves": "raise SystemExit(3)"}.items():
        Path(f"{name}.py").write_text(f"{text}\nf = 1\n")
    with pytest.raises(UserError, match=f"^grader {function}: ") as error:
        check_machine(PythonGrader(function=function, code=""))
    assert at_run in str(error.value) and "\n" not in str(error.value)
    if at_plan:
        with pytest.raises(UserError) as error:
            code_of(function)
        assert at_plan in str(error.value) and "\n" not in str(error.value)
    else:
        assert code_of(function)


def test_a_function_that_can_be_called_passes(rewards):
    for name in ("kinds", "rest", "judge", "by_name", "may_do_without", "other_names"):
        check_machine(grader(name))
        assert code_of(f"own_rewards:{name}")


@pytest.mark.parametrize("name", ["judge", "by_name"])
def test_a_judge_is_given_the_question_of_each_completion(rewards, name):
    """Also where completion and answer are the same: two questions are two verdicts."""
    found = graded(["so", "so", "so so"], grader(name), questions=["2 + 3", "7 - 3", "of 4"])
    assert [(g.outcome, g.reward) for g in found] == [("wrong", 0.3), ("correct", 0.8), ("wrong", 0.4)]


def test_a_judge_without_a_question_is_an_error_unless_it_has_a_default(rewards):
    with pytest.raises(UserError, match="^grader own_rewards:judge: it takes the question, and this record has none"):
        graded(["so"], grader("judge"))
    assert [g.reward for g in graded(["so", "so"], grader("may_do_without"), questions=[None, "why"])] == [1.0, 0.0]


def test_the_error_of_a_judge_shows_the_question(rewards):
    with pytest.raises(UserError, match="TypeError: .* the answer 'a' and the question 'no number'"):
        graded(["so"], grader("judge"), questions=["no number"])


def test_functions_of_two_parameters_are_called_with_two(rewards):
    texts, questions = ["yes", "no", "part"], ["1", "2", "3"]
    assert graded(texts, grader("kinds"), questions=questions) == graded(texts, grader("kinds"))
    assert [g.reward for g in graded(texts, grader("other_names"), questions=questions)] == [1.0, 0.0, 0.0]


def planned(root: Path):
    """The training of toy_grpo and its evaluation, with functions as reward and as grader."""
    raw = yaml.safe_load((root / "config/config.yaml").read_text())
    raw["datasets"]["toy_train"]["reward"] = {"kind": "python", "function": "own_rewards:kinds"}
    raw["benchmarks"]["toy_id"]["grader"] = {"kind": "python", "function": "own_rewards:hangs"}
    raw["recipes"]["toy_grpo"]["evaluation"] = {"benchmark": "toy_id", "every_steps": 10}
    planner = Planner(load_config(raw), read_assets(root))
    train = planner.train("toy_grpo", 0)
    return train, planner.evaluation("toy", None, [0], "toy_id")


def test_the_key_follows_the_code_of_the_function(rewards, project_root):
    train, base = planned(project_root)
    code = code_of("own_rewards:kinds")
    assert train.spec.on_policy.grader == grader("kinds").model_copy(update={"code": code})
    assert train.spec.evaluation.grader.function == base.spec.grader.function == "own_rewards:hangs"
    (rewards / "own_rewards.py").write_text("# A comment.\n" + REWARDS)
    assert [node.id for node in planned(project_root)] == [train.id, base.id]
    (rewards / "own_rewards.py").write_text(REWARDS.replace("0.75", "0.7"))
    assert not {node.id for node in planned(project_root)} & {train.id, base.id}


def test_a_mistake_stops_the_plan_with_the_place_of_the_setting(rewards, project_root):
    (rewards / "own_rewards.py").write_text("")
    with pytest.raises(
        UserError, match=r"`datasets\.toy_train\.reward\.function`: own_rewards has no function `kinds`"
    ):
        planned(project_root)


def test_a_job_planned_before_the_code_changed_stops(rewards):
    graded_by = grader("kinds").model_copy(update={"code": code_of("own_rewards:kinds")})
    check_grader(graded_by)
    (rewards / "own_rewards.py").write_text(REWARDS + "\nFACTOR = 2\n")
    with pytest.raises(UserError, match=r"the code of grader own_rewards:kinds \(own_rewards\) has changed since"):
        check_grader(graded_by)
    (rewards / "own_rewards.py").unlink()
    with pytest.raises(UserError, match="the code of grader own_rewards:kinds is gone"):
        check_grader(graded_by)


def test_a_package_that_raises_when_it_is_imported_is_one_line(rewards):
    (rewards / "broken_rewards").mkdir()
    (rewards / "broken_rewards/__init__.py").write_text("raise KeyError('MY_SETTING')")
    (rewards / "broken_rewards/judge.py").write_text("def judge(completion, answer): return True")
    with pytest.raises(UserError, match="reading broken_rewards.judge failed: KeyError: 'MY_SETTING'"):
        code_of("broken_rewards.judge:judge")


def test_a_function_whose_import_ends_its_worker_is_one_line_of_grade(rewards):
    (rewards / "ends.py").write_text("import os\nos._exit(3)\ndef judge(completion, answer): return True")
    (rewards / "said.jsonl").write_text('{"completion": "a", "answer": "a"}\n')
    done = subprocess.run(
        [sys.executable, "-m", "selfdistill.cli", "grade", "said.jsonl", "--function", "ends:judge"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: a grading worker" in done.stderr and "could not start" in done.stderr
