"""One GRPO step and one SDPO step of the toy world, from prompts to the updates, in plain torch.

    python examples/one_step.py

A readable twin of the training engine (`src/selfdistill/training/`). It forwards one sequence at a time and holds all
its logits, so each formula of docs/method.md is a line or two. The engine computes the same in chunks, in micro-batches
and on several GPUs; tests/unit/test_one_step.py checks that losses and gradients are equal.

    prompts -> rollouts -> rewards -> advantages, or teacher prompts -> token losses -> loss -> AdamW

Shapes: L tokens of a completion, V vocabulary, K the student's most likely tokens. The package gives the problems and
the tokenizer of the toy world, nothing else.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from selfdistill.toy.problems import Problem, draw
from selfdistill.toy.tokenizer import END, build_tokenizer

PROMPTS_PER_STEP, PROMPTS_PER_UPDATE, GROUP_SIZE, MAX_TOKENS = 8, 4, 8, 24  # two updates per step, as in the paper
LEARNING_RATE, MAX_GRAD_NORM = 2e-4, 1.0
CLIP_LOW, CLIP_HIGH, DUAL_CLIP = 0.2, 0.28, 3.0  # GRPO, docs/method.md 5
ALPHA, TOP_K, WEIGHT_CAP = 0.5, 20, 2.0  # SDPO, docs/method.md 2
CORRECTION_CAP = 2.0  # both, docs/method.md 7.2
REPROMPT = "{question} correct solution : {demonstration} now solve"  # docs/method.md 8.2, in the toy's words


@dataclass(frozen=True)
class Rollout:
    """One graded completion of a prompt. `sampler_logprobs_L` are those of its tokens when they were drawn."""

    question: str
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    sampler_logprobs_L: Tensor
    reward: float


#: What a method says about one rollout: its advantage (GRPO), the teacher's prompt (SDPO), or None: it is masked.
Signal = float | list[int] | None
#: (rollout, its signal, student's logits [L, V], old log-probs [L]) -> loss of each token [L].
TokenLoss = Callable[[Rollout, Signal, Tensor, Tensor], Tensor]


# 1. Prompts, rollouts, rewards.


def encode(tokenizer: PreTrainedTokenizerFast, content: str) -> list[int]:
    """A prompt: the user's message and the header of the answer."""
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@torch.no_grad()
def sample(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, problem: Problem) -> Rollout:
    """Draw one completion, token by token, at temperature 1 from the whole vocabulary."""
    prompt_ids, ids, logprobs = encode(tokenizer, problem.question), [], []
    while len(ids) < MAX_TOKENS and ids[-1:] != [tokenizer.eos_token_id]:
        logprobs_V = model(torch.tensor([prompt_ids + ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(torch.multinomial(logprobs_V.exp(), 1)))
        logprobs.append(logprobs_V[ids[-1]])
    text = tokenizer.decode(ids, skip_special_tokens=True)
    boxes = re.findall(r"\\boxed\{ (\d+) \}", text)
    is_right = boxes[-1:] == [str(problem.answer)] and ids[-1] == tokenizer.eos_token_id
    return Rollout(problem.question, prompt_ids, ids, text, torch.stack(logprobs), float(is_right))


# 2. GRPO: advantages and the clipped loss (docs/method.md 5).


def advantages(group: list[Rollout]) -> list[float]:
    """Reward minus the mean of the group, without division by the standard deviation."""
    mean = sum(rollout.reward for rollout in group) / len(group)
    return [rollout.reward - mean for rollout in group]


def grpo_loss(rollout: Rollout, advantage: float, student_LV: Tensor, old_L: Tensor) -> Tensor:
    """max(-A ratio, -A clip(ratio, 1 - 0.2, 1 + 0.28)); where A < 0 at most -3 A."""
    ratio_L = (logprobs_of(student_LV, rollout) - old_L).exp()
    loss_L = torch.maximum(-advantage * ratio_L, -advantage * ratio_L.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH))
    return loss_L.clamp(max=-DUAL_CLIP * advantage) if advantage < 0 else loss_L


# 3. SDPO: demonstrations, teacher prompts and the divergence (docs/method.md 2 and 3).


def teacher_prompts(group: list[Rollout], tokenizer: PreTrainedTokenizerFast) -> list[list[int] | None]:
    """The teacher of a rollout is shown the first correct rollout of the group other than itself, if there is one."""
    prompts: list[list[int] | None] = []
    for rollout in group:
        correct = [other.text for other in group if other.reward >= 0.5 and other is not rollout]
        shown = REPROMPT.format(question=rollout.question, demonstration=correct[0]) if correct else None
        prompts.append(encode(tokenizer, shown) if shown else None)
    return prompts


def with_tail(logprobs_LK: Tensor) -> Tensor:
    """One more category for the rest of the vocabulary: K + 1 log-probs whose exponentials sum to one."""
    mass_L1 = logprobs_LK.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logprobs_LK, torch.log(-torch.expm1(mass_L1))], -1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probs."""
    return (p.exp() * (p - q)).sum(-1)


def sdpo_loss(teacher: Qwen3ForCausalLM) -> TokenLoss:
    """Jensen-Shannon divergence of student S and teacher T, each reading its own prompt and the same completion:

        (1 - alpha) KL(S || M) + alpha KL(T || M) with M = (1 - alpha) S + alpha T, times min(pi / pi_old, 2)

    over the student's top K tokens and a tail. No gradient reaches T or the weight.
    """

    def loss(rollout: Rollout, teacher_prompt_ids: list[int], student_LV: Tensor, old_L: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_LV = completion_logits(teacher, teacher_prompt_ids, rollout)
        top_LK = student_LV.topk(TOP_K).indices
        s = with_tail(student_LV.log_softmax(-1).gather(-1, top_LK))
        t = with_tail(teacher_LV.log_softmax(-1).gather(-1, top_LK))
        m = torch.logaddexp(s + math.log(1 - ALPHA), t + math.log(ALPHA))
        weight_L = (logprobs_of(student_LV, rollout) - old_L).detach().exp().clamp(max=WEIGHT_CAP)
        return ((1 - ALPHA) * kl(s, m) + ALPHA * kl(t, m)) * weight_L

    return loss


# 4. From token losses to the updates of a step (docs/method.md 7).


def completion_logits(model: Qwen3ForCausalLM, prompt_ids: list[int], rollout: Rollout) -> Tensor:
    """Logits [L, V] that predict the tokens of the completion after a prompt."""
    logits = model(torch.tensor([prompt_ids + rollout.completion_ids])).logits[0]
    return logits[len(prompt_ids) - 1 : -1]


def logprobs_of(logits_LV: Tensor, rollout: Rollout) -> Tensor:
    """Log-probs [L] of the tokens that were drawn."""
    return logits_LV.log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]


def old_logprobs(model: Qwen3ForCausalLM, rollout: Rollout) -> Tensor:
    with torch.no_grad():
        return logprobs_of(completion_logits(model, rollout.prompt_ids, rollout), rollout)


def update_loss(model: Qwen3ForCausalLM, rows: list[tuple[Rollout, Signal, Tensor]], token_loss: TokenLoss) -> Tensor:
    """Mean over all rows of the mean over their tokens; masked rows add nothing and count in the denominator."""
    total = torch.zeros(())
    for rollout, signal, old_L in rows:
        if signal is None:
            continue
        student_LV = completion_logits(model, rollout.prompt_ids, rollout)
        correction_L = (old_L - rollout.sampler_logprobs_L).exp().clamp(max=CORRECTION_CAP)
        total = total + (token_loss(rollout, signal, student_LV, old_L) * correction_L).mean()
    return total / len(rows)


def run_updates(
    model: Qwen3ForCausalLM,
    groups: list[list[Rollout]],
    signals: list[list[Signal]],
    token_loss: TokenLoss,
    report: Callable[[float, float], None],
) -> None:
    """Change `model` by one AdamW step per mini-batch. `report` gets loss and gradient norm before each of them."""
    rows = [
        (rollout, signal, old_logprobs(model, rollout))  # the old policy is the one before the first update
        for group, group_signals in zip(groups, signals, strict=True)
        for rollout, signal in zip(group, group_signals, strict=True)
    ]
    adamw = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.01)
    size = PROMPTS_PER_UPDATE * GROUP_SIZE
    for first in range(0, len(rows), size):
        adamw.zero_grad()
        loss = update_loss(model, rows[first : first + size], token_loss)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        report(loss.item(), norm.item())
        adamw.step()


def grpo_step(model: Qwen3ForCausalLM, groups: list[list[Rollout]], report: Callable[[float, float], None]) -> None:
    """All updates of a GRPO step."""
    run_updates(model, groups, [advantages(group) for group in groups], grpo_loss, report)


def sdpo_step(
    model: Qwen3ForCausalLM,
    groups: list[list[Rollout]],
    report: Callable[[float, float], None],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """All updates of an SDPO step. The teacher is fixed: the policy before training."""
    signals = [teacher_prompts(group, tokenizer) for group in groups]
    run_updates(model, groups, signals, sdpo_loss(copy.deepcopy(model)), report)


# 5. A model that guesses, and both steps.


def guessing_model(tokenizer: PreTrainedTokenizerFast, rng: random.Random, steps: int = 120) -> Qwen3ForCausalLM:
    """A small random model that imitates guesses for a few seconds, so that some of its answers are right."""
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, initializer_range=0.05,
        max_position_embeddings=256,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    adamw = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        prompts, answers = [], []  # all prompts are equally long, and all answers
        for problem in (draw("id", rng) for _ in range(32)):
            guess = rng.choice(problem.candidates)
            answer = f"<think> {rng.choice(('so', 'maybe'))} {guess} </think> \\boxed{{ {guess} }} {END}"
            prompts.append(encode(tokenizer, problem.question))
            answers.append(tokenizer(answer, add_special_tokens=False).input_ids)
        ids, targets = torch.tensor([p + a for p, a in zip(prompts, answers, strict=True)]), torch.tensor(answers)
        logits = model(ids).logits[:, len(prompts[0]) - 1 : -1]
        adamw.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        adamw.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of problems, weights and samples")
    seed = parser.parse_args().seed
    torch.manual_seed(seed)
    rng, tokenizer = random.Random(seed), build_tokenizer(256)
    print("Teach a small random model to guess ...")
    base = guessing_model(tokenizer, rng)
    problems = [draw("id", rng) for _ in range(PROMPTS_PER_STEP)]
    groups = [[sample(base, tokenizer, problem) for _ in range(GROUP_SIZE)] for problem in problems]
    print(f"\nRollouts: {GROUP_SIZE} for each of {PROMPTS_PER_STEP} prompts. Rewards, and the first completion:")
    for problem, group in zip(problems, groups, strict=True):
        rewards = " ".join(f"{rollout.reward:.0f}" for rollout in group)
        print(f"  {problem.question:44} answer {problem.answer:2}   {rewards}   {group[0].text}")
    steps = {"GRPO": grpo_step, "SDPO": lambda *arguments: sdpo_step(*arguments, tokenizer)}
    for name, step in steps.items():
        policy = copy.deepcopy(base)
        print(f"\n{name}")
        step(policy, groups, lambda loss, norm: print(f"  update: loss {loss:+.6f}   gradient norm {norm:.4f}"))
        for reward in (1, 0):
            rows = [rollout for group in groups for rollout in group if rollout.reward == reward]
            change = sum((old_logprobs(policy, row) - old_logprobs(base, row)).sum().item() for row in rows) / len(rows)
            print(f"  log-probability of a {'right' if reward else 'wrong'} completion: {change:+.4f}")


if __name__ == "__main__":
    main()
