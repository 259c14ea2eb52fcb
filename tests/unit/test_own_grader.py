"""Graders of the user's own: what a function may return, what stops a job, and what a key depends on."""

from __future__ import annotations

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
from selfdistill.stages.shared.outside_code import check_grader

REWARDS = """
import math, sys, time
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


def graded(texts, using, reasons=None, answers=None):
    with WorkerPool() as pool:
        return grade(texts, answers or ["a"] * len(texts), reasons or ["eos"] * len(texts), using, pool)


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
        ("own_rewards:one", "it must take two arguments, completion and answer", "one must take two arguments"),
        ("own_rewards:three", "it must take two arguments, completion and answer", None),
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
    for name in ("kinds", "rest"):
        check_machine(grader(name))


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
