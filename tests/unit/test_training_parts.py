"""Schedule, draws, packing, chunks, teachers and plans, each on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfdistill.generation.base import Completion
from selfdistill.rollouts import Rollout
from selfdistill.schema.common import Optimiser, RepromptTemplate
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Teacher
from selfdistill.training.data import CONTEXT, draw_indices
from selfdistill.training.methods import make_method
from selfdistill.training.micro_batches import plan_micro_batches
from selfdistill.training.network import Network, backward_through_head, completion_logprobs, pack
from selfdistill.training.optimiser import clip_gradients, learning_rate
from selfdistill.training.teacher import TeacherNetwork
from tiny import tiny_model
from training_session import (
    GRPO,
    SDPO,
    TOKENIZER,
    make_prompts,
    make_spec,
)


def test_warm_up_starts_at_zero_and_counts_steps():
    settings = Optimiser(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(settings, step, 100) for step in (1, 2, 3, 4, 5, 100)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert learning_rate(Optimiser(learning_rate=1.0, warmup_steps=0), 1, 100) == 1


def test_cosine_falls_from_the_peak_to_its_final_share():
    settings = Optimiser(learning_rate=2.0, warmup_steps=10, schedule="cosine", final_fraction=0.1)
    assert learning_rate(settings, 11, 110) == 2.0
    assert learning_rate(settings, 61, 110) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(settings, 110, 110) == pytest.approx(0.2, abs=1e-3)


def test_gradients_are_scaled_to_the_norm_and_the_norm_before_is_returned():
    tensors = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert clip_gradients(tensors, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(tensors[1], torch.tensor([[0.8]]), atol=1e-5, rtol=1e-5)
    assert clip_gradients(tensors, 2.0) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(tensors[0], torch.tensor([0.6]), atol=1e-5, rtol=1e-5)


def test_draws_with_replacement_depend_on_seed_and_step_alone():
    spec = make_spec(GRPO, prompts_per_step=200, prompts_per_update=200)
    assert draw_indices(spec, 3, 50) == draw_indices(spec, 3, 50)
    assert draw_indices(spec, 3, 50) != draw_indices(spec, 4, 50)
    assert draw_indices(spec, 3, 50) != draw_indices(make_spec(GRPO, seed=1, prompts_per_step=200), 3, 50)
    assert set(draw_indices(spec, 3, 5)) == {0, 1, 2, 3, 4}


def test_epochs_visit_everything_once_before_anything_twice():
    spec = make_spec(GRPO, draw="epochs", prompts_per_step=4)
    drawn = sum((draw_indices(spec, step, 10) for step in range(1, 6)), [])
    assert sorted(drawn[:10]) == list(range(10)) == sorted(drawn[10:])
    assert drawn[:10] != drawn[10:]


@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_micro_batches_hold_every_row_once_within_the_budget(budget):
    generator = np.random.default_rng(0)
    student, teacher = generator.integers(5, 60, 40), generator.integers(5, 90, 40)
    batches = plan_micro_batches(student, teacher, budget)
    assert sorted(sum(batches, [])) == list(range(40))
    for batch in batches:
        padded = max(student[batch].max(), teacher[batch].max()) * len(batch)
        assert len(batch) == 1 or padded <= budget
    if budget == 1:
        assert len(batches) == 40


def test_similar_lengths_share_a_micro_batch():
    assert plan_micro_batches([10, 5000, 11, 5100], [0, 0, 0, 0], 100_000) == [[0, 2], [1, 3]]


def test_packing_points_at_the_predictions_of_the_completion():
    packed = pack([[11, 12, 13], [21]], [[14, 15], [22, 23, 24]], torch.device("cpu"))
    assert packed.ids_BT.tolist() == [[11, 12, 13, 14], [21, 22, 23, 0]]
    assert packed.positions_N.tolist() == [2, 3, 4, 5, 6]
    assert packed.targets_N.tolist() == [14, 15, 22, 23, 24]


def test_padding_changes_no_log_probability():
    network = Network(tiny_model(len(TOKENIZER)), temperature=0.8)
    prompts, completions = [[5, 6, 7, 8, 9], [10]], [[11, 12], [13, 14, 15, 16]]
    together = completion_logprobs(network, pack(prompts, completions, network.device))
    apart = [
        completion_logprobs(network, pack([p], [c], network.device)) for p, c in zip(prompts, completions, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_gradients_through_chunks_equal_those_of_whole_logits(tied, chunk):
    prompts, completions = [[5, 6], [7, 8, 9]], [[10, 11, 12], [13, 14]]
    expected, found = tiny_model(len(TOKENIZER), tied=tied), tiny_model(len(TOKENIZER), tied=tied)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.1])
    loss = 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logits = expected(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]
        loss = loss + (logprobs * (weights[:3] if row == 0 else weights[3:])).sum()
    loss.backward()

    network = Network(found)
    network.chunk_tokens = lambda: chunk
    packed = pack(prompts, completions, network.device)

    def loss_of_chunk(part, student_logits):
        logprobs = student_logits.log_softmax(-1).gather(-1, packed.targets_N[part, None]).squeeze(-1)
        return (logprobs * weights[part]).sum()

    backward_through_head(network, network.hidden(packed), loss_of_chunk)
    for (name, parameter), other in zip(expected.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_capped_logits_are_those_of_the_model():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, initializer_range=0.5, final_logit_softcapping=2.0,
    )  # fmt: skip
    Network(Gemma2ForCausalLM(config).eval(), temperature=0.7).check_head()


def test_a_model_that_rescales_its_logits_is_refused():
    network = Network(tiny_model(len(TOKENIZER)))
    network.check_head()
    network.model.lm_head.register_forward_hook(
        lambda module, inputs, output: output * 2 if output.dim() == 3 else output
    )
    with pytest.raises(UserError, match="does something between"):
        network.check_head()


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1.001), (torch.bfloat16, 1.05)])
def test_the_head_is_compared_by_the_rounding_of_its_type(dtype, least):
    """Logits of magnitude 100 in bfloat16 lie 0.5 apart: another kernel's rounding is no fault, a scale is one."""
    network = Network(tiny_model(len(TOKENIZER), hidden=64, std=3.0), compute_dtype=dtype)
    factor = 1.0

    def another_kernel(module, inputs, output):
        if output.dim() != 3:
            return output
        last_bit = torch.finfo(output.dtype).eps * output.abs()
        return output * factor + last_bit * torch.where(torch.arange(output.shape[-1]) % 2 == 0, 1, -1)

    network.model.lm_head.register_forward_hook(another_kernel)
    network.check_head()
    factor = least
    with pytest.raises(UserError, match="differ from those of its head by"):
        network.check_head()


def test_teachers_move_as_their_kind_says():
    for kind, expected in (("fixed", 0.0), ("ema", 0.25), ("live", 1.0)):
        student = Network(tiny_model(len(TOKENIZER)))
        teacher = TeacherNetwork(Teacher(kind=kind, rate=0.25), student)
        assert teacher.network is student
        teacher.separate()
        before = student.model.lm_head.weight.detach().clone()
        with torch.no_grad():
            student.model.lm_head.weight += 1
        teacher.update(1)
        torch.testing.assert_close(teacher.network.model.lm_head.weight, before + expected)


def test_a_snapshot_is_the_policy_after_every_nth_step():
    student = Network(tiny_model(len(TOKENIZER)))
    teacher = TeacherNetwork(Teacher(kind="snapshot", every=3), student)
    teacher.separate()
    weight, seen = student.model.lm_head.weight, []
    before = weight.detach().clone()
    for step in range(1, 8):
        with torch.no_grad():
            weight += 1
        teacher.update(step, has_moved=step != 6)  # The updates of step 6 are left out; those of 4 and 5 count.
        seen.append((teacher.network.model.lm_head.weight - before).mean().item())
    assert seen == pytest.approx([0, 0, 3, 3, 3, 6, 6], abs=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.network.model.parameters())
    assert "every" not in Teacher().identity() and Teacher(kind="snapshot", every=3).identity()["every"] == 3


def test_sdpo_shows_the_first_sibling_success_and_masks_the_rest():
    method = make_method(make_spec(SDPO), TOKENIZER, 256)
    prompt = make_prompts(1)[0]

    def group(*rewards):
        return [
            Rollout(prompt, sample, Completion([7], [0.0], "eos"), f"maybe {sample}", "correct", reward, "")
            for sample, reward in enumerate(rewards)
        ]

    shown = [TOKENIZER.decode(plan.teachers[CONTEXT].ids) for plan in method.plan_step([group(0, 1, 0, 1)])[0]]
    assert ["solution maybe 1 solve" in text for text in shown] == [True, False, True, True]
    assert "solution maybe 3 solve" in shown[1]
    assert shown[0].startswith("<|im_start|> user which 0") and shown[0].endswith("<|im_start|> assistant")
    assert [plan.is_supervised for plan in method.plan_step([group(0, 1, 0)])[0]] == [True, False, True]
    assert not any(plan.is_supervised or plan.has_gradient for plan in method.plan_step([group(0, 0, 0)])[0])


def test_sdpo_shows_feedback_only_where_there_is_no_demonstration():
    told = RepromptTemplate(
        frame="{prompt}{solution}{feedback} solve",
        solution=" solution {successful_previous_attempt}",
        feedback=" which {feedback_raw}",
    )
    with_feedback = make_spec(SDPO.model_copy(update={"feedback": True, "reprompt": told}))
    prompt = make_prompts(1)[0]
    group = [
        Rollout(prompt, sample, Completion([7], [0.0], "eos"), f"maybe {sample}", "wrong", reward, "", feedback)
        for sample, (reward, feedback) in enumerate([(0.0, "so 3"), (1.0, ""), (0.0, "")])
    ]
    first, second, third = make_method(with_feedback, TOKENIZER, 256).plan_step([group])[0]
    assert "solution maybe 1 solve" in TOKENIZER.decode(first.teachers[CONTEXT].ids)
    assert "so 3" not in TOKENIZER.decode(first.teachers[CONTEXT].ids)
    assert not second.is_supervised and third.is_supervised
    lonely, nothing = make_method(with_feedback, TOKENIZER, 256).plan_step([[group[0], group[2]]])[0]
    assert "which so 3 solve" in TOKENIZER.decode(lonely.teachers[CONTEXT].ids)
    assert not nothing.is_supervised
    assert not any(
        plan.is_supervised for plan in make_method(make_spec(SDPO), TOKENIZER, 256).plan_step([[group[0], group[2]]])[0]
    )


def test_weights_that_are_not_numbers_are_named_as_such_and_not_as_a_head_of_another_kind():
    model = tiny_model(len(TOKENIZER))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="the model's logits are not finite"):
        Network(model, temperature=1.0).check_head()
