"""Qwen3 (thinking on and off), DeepSeek-R1-Distill-Qwen and Olmo-3 through the real stages, with both samplers.

Small models of the real architectures, with their real chat templates and special tokens (tests/unit/family_study.py).
"""

from __future__ import annotations

import importlib.util
import json
import math

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from chat_tokenizers import tokenizer
from family_study import CASES, METHODS, PROBLEM_TEXTS, SAMPLING, Study
from selfdistill.artifacts.tables import read_rows

NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make test-vllm)"),
]
#: With vLLM one case a family: an engine start for each stage is what costs.
PARAMETERS = [
    *(pytest.param(("torch", *case), id=f"torch-{case[0]}-{case[1]}") for case in CASES),
    *(pytest.param(("vllm", *case), id=f"vllm-{case[0]}", marks=NEEDS_VLLM) for case in CASES if case[1] is not False),
]
#: How the prompt of a student ends: the header of the template, with what thinking on and off put there.
HEADERS = {
    ("qwen3", True): "<|im_start|>assistant\n",
    ("qwen3", False): "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ("deepseek_r1_distill_qwen", None): "<｜Assistant｜><think>\n",
    ("olmo3_instruct", None): "<|im_start|>assistant\n",
}


@pytest.fixture(scope="module", params=PARAMETERS)
def study(request, tmp_path_factory):
    engine, name, thinking = request.param
    return Study(tmp_path_factory.mktemp("study"), name, thinking, engine)


@pytest.fixture(scope="module")
def rollouts(study):
    return study.run(study.rollouts())


def rows_of(artifact):
    return read_rows(artifact.payload / "rollouts.parquet")


def text_of(study, ids):
    return tokenizer(study.name).decode(ids, skip_special_tokens=False)


def shown_prompts(study):
    return {row["row_id"]: row for row in read_rows(study.freeze(study.prompts).payload / "prompts.parquet")}


def test_prompts_end_in_the_templates_header(study):
    for row in shown_prompts(study).values():
        text = text_of(study, row["prompt_ids"])
        assert text.endswith(HEADERS[study.name, study.thinking])
        assert text.count(PROBLEM_TEXTS[row["row_id"]]) == 1
        # One BOS where the family has one, and no second one.
        assert row["prompt_ids"].count(tokenizer(study.name).bos_token_id) == (study.name.startswith("deepseek"))


def test_rollouts_hold_graded_completions_that_end_at_the_end_token(study, rollouts):
    rows = rows_of(rollouts)
    assert [(row["row_id"], row["sample"]) for row in rows] == [(p, s) for p in range(5) for s in range(4)]
    assert {row["reward"] for row in rows} == {0.0, 1.0}
    end = tokenizer(study.name).eos_token_id
    assert sum(row["stop_reason"] == "eos" for row in rows) > len(rows) / 2
    for row in rows:
        assert (row["completion_ids"][-1] == end) == (row["stop_reason"] == "eos")
        assert len(row["completion_ids"]) == len(row["logprobs"]) == row["completion_tokens"] <= SAMPLING.max_tokens
        assert row["reward"] == float(row["extracted"] == row["answer"])
        # Think tags are ordinary tokens: they stay in the text that is graded and shown to a teacher.
        assert ("</think>" in row["completion"]) == ("</think>" in text_of(study, row["completion_ids"]))


def test_a_context_is_a_correct_completion_with_or_without_its_thinking(study, rollouts):
    kinds = {
        kind: read_rows(study.run(study.contexts(kind, study.rollouts())).payload / "contexts.parquet")
        for kind in ("solution", "solution_no_think")
    }
    correct = {(row["row_id"], row["sample"]): row["completion"] for row in rows_of(rollouts) if row["reward"] == 1}
    assert len(kinds["solution"]) > 0
    for whole, short in zip(kinds["solution"], kinds["solution_no_think"], strict=True):
        assert whole["context"].strip() == correct[whole["source_row_id"], whole["source_sample"]].strip()
        assert "</think>" not in short["context"] and "\\boxed" in short["context"]


def test_prompts_with_a_context_show_it_once_and_keep_the_header(study, rollouts):
    contexts = study.contexts("solution", study.rollouts())
    rows = rows_of(study.run(study.rollouts(samples=1, contexts=contexts)))
    shown = {row["problem_id"] for row in read_rows(study.freeze(contexts).payload / "contexts.parquet")}
    assert {row["problem_id"] for row in rows} == shown
    assert all(row["prompt_tokens"] > len(shown_prompts(study)[row["row_id"]]["prompt_ids"]) for row in rows)


@pytest.mark.parametrize("method", ["grpo", "sdpo"])
def test_training_and_evaluation_of_its_checkpoint(study, method):
    training = study.train(METHODS[method])
    artifact = study.run(training)
    metrics = [json.loads(line) for line in artifact.metrics.read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2]
    for line in metrics:
        assert all(math.isfinite(value) for value in line.values())
        assert line["sampler_gap"] < 1e-4
    assert sum(line["supervised_tokens"] for line in metrics) > 0
    assert sum(line["grad_norm"] for line in metrics) > 0
    if method == "sdpo":
        assert sum(line["demonstration_share"] for line in metrics) > 0
    changed = AutoModelForCausalLM.from_pretrained(artifact.payload / "checkpoints/step-2").state_dict()
    base = AutoModelForCausalLM.from_pretrained(study.freeze(study.model).payload / "model").state_dict()
    assert any(not changed[name].equal(base[name]) for name in base)
    evaluated = study.run(study.evaluate(training, [2]))
    assert pq.read_table(evaluated.payload / "rollouts.parquet")["step"].to_pylist() == [2] * 10
    assert 0 <= evaluated.summary["step-2"]["mean_reward"] <= 1
