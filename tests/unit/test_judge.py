"""The question of a problem reaches a judge of the user's from a training, from its evaluation and from the stage."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from selfdistill.artifacts.tables import prompt_columns, read_rows, write_rows
from selfdistill.grading import WorkerPool
from selfdistill.plan.own_graders import code_of
from selfdistill.rollouts import grade_function
from selfdistill.run.job import Job
from selfdistill.schema.common import PythonGrader, Sampling
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import EvaluateSpec
from selfdistill.schema.training import TrainingEvaluation
from selfdistill.stages import evaluate
from selfdistill.stages.shared import generate
from small_specs import small
from tiny import tiny_model
from training_session import GRPO, TOKENIZER, Session, make_prompts, make_spec

SOURCE = """
import re

def judge(completion, answer, question):
    return (int(re.search("[0-9]+", question)[0]) + len(completion.split()) % 2) / 10
"""
JUDGE = PythonGrader(function="own_judge:judge", code="")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project folder. The judge gives tenths: the number in the question, one more for an odd number of words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_judge.py").write_text(SOURCE)
    return tmp_path


def test_the_questions_of_a_training_and_of_its_evaluation_reach_the_judge(project):
    """As the problem has them, not in the words of the prompt."""
    prompts = [replace(prompt, question=f"raw {prompt.row_id + 3}") for prompt in make_prompts()]
    evaluation = small(TrainingEvaluation, every_steps=1, limit=1, samples=2, sampling=Sampling(max_tokens=8))
    spec = make_spec(GRPO, steps=2, evaluation=evaluation)
    with WorkerPool() as pool:
        session = Session(project, spec, grade=grade_function(JUDGE, pool))
        session.run(prompts=prompts)
    rows = [row for step in session.rollouts.values() for row in step]
    assert rows and [row["reward"] for row in rows] == [
        (row["row_id"] + 3 + len(row["completion"].split()) % 2) / 10 for row in rows
    ]
    # Its problem asks "which 6".
    assert all(0.6 <= line["evaluation_avg_at_k"] <= 0.7 for line in session.metrics())


def test_the_questions_of_an_evaluation_reach_the_judge(project, monkeypatch):
    question = {"row_id": 0, "problem_id": "p", "family": "", "question": "raw 3", "answer": "0"}
    ids = TOKENIZER.apply_chat_template([{"role": "user", "content": "which 5"}], return_dict=False)
    rows = [question | {"messages": '[{"role": "user", "content": "which 5"}]', "prompt_ids": ids}]
    write_rows(project / "prompts.parquet", rows, prompt_columns(rows))
    tiny_model(len(TOKENIZER)).save_pretrained(project / "model")
    TOKENIZER.save_pretrained(project / "model")
    monkeypatch.setattr(generate, "model_folder", lambda model, step: project / "model")
    using = JUDGE.model_copy(update={"code": code_of("own_judge:judge")})
    spec = small(EvaluateSpec, steps=[0], samples=4, sampling=Sampling(max_tokens=6), grader=using, engine="torch")
    artifact = SimpleNamespace(
        spec=lambda kind: spec, input=lambda role: SimpleNamespace(payload=project), state=project, payload=project
    )
    tee = SimpleNamespace(print=print, log=print, has_terminal=False, label="test")
    evaluate.main(Job(artifact, StageRuntime(), tee))
    rows = read_rows(project / "rollouts.parquet")
    assert [row["reward"] for row in rows] == [(3 + len(row["completion"].split()) % 2) / 10 for row in rows]
    assert len(rows) == 4
