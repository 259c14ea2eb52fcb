"""The training loop: what a run leaves behind, and that it is loud when there is nothing to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selfdistill.schema.common import Optimiser, RepromptTemplate, Sampling
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.training import OnPolicy
from small_specs import small
from training_session import (
    GRPO,
    SDPO,
    SFT,
    TOKENIZER,
    Session,
    Verdict,
    make_spec,
)


@pytest.mark.parametrize("method", [GRPO, SDPO, SFT], ids=["grpo", "sdpo", "sft"])
def test_a_run_leaves_checkpoints_metrics_and_rollouts(tmp_path, method):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    session = Session(tmp_path, make_spec(method))
    summary = session.run()
    assert summary.checkpoint_steps == [2, 4]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-2", "step-4"]
    lines = session.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    common = {
        "loss", "grad_norm", "entropy_mean", "learning_rate", "supervised_tokens", "tokens_per_second",
        "completion_tokens_mean", "peak_memory_mb", "seconds_step", "seconds_updates",
    }  # fmt: skip
    on_policy = {
        "reward_mean", "truncation_rate", "unparsed_share", "timeout_share", "unreadable_gold_share",
        "usable_group_share", "sampler_gap", "epistemic_count_mean", "epistemic_density_per_1k_tokens",
        "seconds_sampling", "seconds_grading",
    }  # fmt: skip
    teacher = {
        "demonstration_share", "teacher_prompt_truncated_share", "leaked_thinking_share", "teacher_gap_epistemic",
        "teacher_gap_other", "teacher_tokens",
    }  # fmt: skip
    expected = common | (set() if method is SFT else on_policy) | (teacher if method is SDPO else set())
    assert expected <= set(lines[-1])
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert [line for line in session.reports if "phase" not in line] == lines
    trained = load_file(tmp_path / "checkpoints" / "step-4" / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / "step-4")
    torch.testing.assert_close(loaded.model.norm.weight, trained["model.norm.weight"], atol=0, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoints" / "step-4").chat_template == TOKENIZER.chat_template
    if method is not SFT:
        assert sorted(session.rollouts) == [1, 2, 3, 4]
        assert len(session.rollouts[1]) == 16
        assert all(line["sampler_gap"] < 1e-5 for line in lines if line["supervised_tokens"])


def test_grpo_learns_what_is_rewarded(tmp_path):
    def says_maybe(texts, prompts, stop_reasons):
        return [Verdict("correct" if "maybe" in text else "wrong", float("maybe" in text)) for text in texts]

    spec = make_spec(
        GRPO, steps=25, prompts_per_update=4, on_policy=small(OnPolicy, group_size=8, sampling=Sampling(max_tokens=12))
    )
    session = Session(tmp_path, spec, StageRuntime(state_every_steps=100), grade=says_maybe)
    session.run()
    rewards = [line["reward_mean"] for line in session.metrics()]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15


def test_sft_learns_its_completions(tmp_path):
    session = Session(tmp_path, make_spec(SFT, steps=30, draw="epochs"), StageRuntime(state_every_steps=100))
    session.run()
    losses = [line["loss"] for line in session.metrics()]
    assert losses[-1] < 0.5 * losses[0]


def test_a_null_context_teaches_nothing(tmp_path):
    """A fixed teacher with the student's own prompt is the student: loss and gradient vanish."""
    template = RepromptTemplate.model_construct(frame="{prompt}", solution="", feedback="")
    method = SDPO.model_copy(update={"reprompt": template, "teacher": Teacher(kind="fixed")})
    session = Session(tmp_path, make_spec(method, steps=1, prompts_per_update=4))
    session.run()
    assert session.metrics()[0]["supervised_tokens"] > 0
    assert abs(session.metrics()[0]["loss"]) < 1e-6
    assert session.metrics()[0]["grad_norm"] < 1e-4


def all_wrong(texts, prompts, stop_reasons):
    return [Verdict("wrong", 0.0) for _ in texts]


def test_a_short_run_in_which_no_step_had_a_signal_is_an_error(tmp_path):
    """Fewer steps than max_steps_without_signal: weight decay alone would have moved the weights."""
    session = Session(tmp_path, make_spec(GRPO, steps=2, checkpoint_every=1), grade=all_wrong)
    with pytest.raises(UserError, match="step 2: no learning signal in the last 2 steps"):
        session.run()
    assert not (tmp_path / "checkpoints/step-2").exists()


@pytest.mark.parametrize("method", [GRPO, SDPO], ids=["grpo", "sdpo"])
def test_training_without_signal_stops_with_the_reason(tmp_path, method):
    session = Session(tmp_path, make_spec(method, steps=9, max_steps_without_signal=3), grade=all_wrong)
    with pytest.raises(UserError, match="step 3: no learning signal in the last 3 steps"):
        session.run()
    assert [line["supervised_tokens"] for line in session.metrics()] == [0, 0, 0]


def test_divergence_names_the_step(tmp_path):
    spec = make_spec(SFT, steps=50, optimiser=Optimiser(learning_rate=1e30, warmup_steps=0))
    with pytest.raises(UserError, match=r"step \d+: the (loss|gradient norm) is (nan|inf)"):
        Session(tmp_path, spec).run()


def test_too_many_cut_demonstrations_stop_training(tmp_path):
    method = SDPO.model_copy(update={"max_reprompt_tokens": 12, "max_truncated_share": 0.1})
    with pytest.raises(UserError, match="max_truncated_share"):
        Session(tmp_path, make_spec(method)).run()


def test_empty_inputs_are_refused(tmp_path):
    with pytest.raises(UserError, match="no prompts"):
        Session(tmp_path, make_spec(GRPO)).run(prompts=[])
    with pytest.raises(UserError, match="no completions"):
        Session(tmp_path, make_spec(SFT)).run(examples=[])
