"""From completions to rows, and what loading a model folder gives: one home each for stages and training."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM

from selfdistill.generation import Completion
from selfdistill.generation.loading import end_token_ids, load_sampler
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.rollouts import grade_groups, rollout_rows, sampling_seeds
from selfdistill.schema.common import CodeGrader, MathGrader, Sampling
from selfdistill.schema.runtime import StageRuntime
from tiny import tiny_model
from training_session import EOS, TOKENIZER, grade, make_prompts


def completion(*token_ids):
    return Completion([*token_ids, EOS], [-0.5] * (len(token_ids) + 1), "eos")


def test_groups_keep_the_order_and_number_of_their_completions():
    prompts = make_prompts(3)
    completions = [[completion(7), completion(8, 9)], [], [completion(10)]]
    groups = grade_groups(prompts, completions, TOKENIZER, grade)
    assert [[rollout.completion for rollout in group] for group in groups] == completions
    assert [rollout.text for rollout in groups[0]] == [TOKENIZER.decode([7]), TOKENIZER.decode([8, 9])]
    rows = rollout_rows(groups, 4, MathGrader())
    assert [(row["step"], row["row_id"], row["sample"], row["completion_tokens"]) for row in rows] == [
        (4, 0, 0, 2), (4, 0, 1, 3), (4, 2, 0, 2),
    ]  # fmt: skip


def test_no_prompts_give_no_groups():
    """A rank or shard may have none; the tokenizer's own batch decoding makes one text of nothing."""
    assert grade_groups([], [], TOKENIZER, grade) == []


def test_rows_show_the_number_of_tests_of_a_program_and_not_the_tests():
    tests = '{"kind": "stdin", "tests": [{"input": "1", "output": "2"}]}'
    (prompt,) = make_prompts(1)
    shown = replace(prompt, answer=tests)
    groups = grade_groups([shown], [[completion(7)]], TOKENIZER, lambda texts, _, stops: grade(texts, [prompt], stops))
    (row,) = rollout_rows(groups, 0, CodeGrader())
    assert row["answer"] != tests and len(row["answer"]) < len(tests)


def test_seeds_depend_on_row_and_sample_alone():
    prompts = make_prompts(4)
    whole = sampling_seeds(5, prompts, 3)
    assert sampling_seeds(5, prompts[2:], 2) == [seeds[:2] for seeds in whole[2:]]
    assert len({seed for seeds in whole for seed in seeds}) == 12
    assert sampling_seeds(6, prompts, 3) != whole


@pytest.mark.parametrize("has_file", [True, False], ids=["generation_config.json", "config.json alone"])
def test_end_tokens_are_those_of_the_loaded_model_and_the_tokenizer(tmp_path, has_file):
    model = tiny_model(len(TOKENIZER))
    model.config.eos_token_id = [3, 9]
    model.generation_config.eos_token_id = [3, 9]
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    if not has_file:
        (tmp_path / "generation_config.json").unlink()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    assert end_token_ids(tmp_path) == sorted({*loaded, EOS}) == sorted({3, 9, EOS})


@pytest.fixture
def folder(tmp_path):
    tiny_model(len(TOKENIZER)).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def test_a_sampler_of_a_training_uses_its_weights_unless_they_will_be_sharded(folder):
    trained = tiny_model(len(TOKENIZER))
    in_turns = load_sampler(folder, "torch", StageRuntime(), max_positions=99, trained_model=trained)
    assert in_turns.model is trained and in_turns.shares_model
    sharded = StageRuntime(processes=2, sharding="full")
    copied = load_sampler(folder, "torch", sharded, max_positions=99, trained_model=trained)
    assert copied.model is not trained and not copied.shares_model


def test_a_sampler_over_a_folder_is_a_model_of_its_own(folder):
    sampler = load_sampler(folder, "torch", StageRuntime(), max_positions=99)
    expected = TorchSampler(copy.deepcopy(sampler.model), [EOS])
    found = sampler.generate([[5, 6]], [[1, 2]], Sampling(max_tokens=6))
    assert found == expected.generate([[5, 6]], [[1, 2]], Sampling(max_tokens=6))
    assert not sampler.shares_model and not sampler.model.training
