"""Pretraining of the toy world's base model: a small Qwen3 that learns to check, to search and to guess.

Cross-entropy on the learned words of the mixture (`toy/mixture.py`). Every batch mixes all kinds of text: with one kind
per batch the checks are not learned (docs/toy.md 4). The texts of a batch are sorted by length and split in two, which
halves the padding and changes nothing else.
"""

from __future__ import annotations

import collections
import math
import random
import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import PretrainSpec
from selfdistill.schema.toy import ToyArchitecture
from selfdistill.toy.chain_text import ChainTextMaker
from selfdistill.toy.mixture import SwitchedTextMaker, Text, TextMaker
from selfdistill.toy.tokenizer import END, build_tokenizer
from selfdistill.training.optimiser import clip_gradients, gradients, learning_rate, make_adamw, set_learning_rate

#: Steps whose mean loss is the running loss.
LOSS_WINDOW = 30
REPORT_EVERY = 10
MICRO_BATCHES = 2
ROPE_THETA = 10_000.0

Sequence = tuple[list[int], list[int]]  # token ids; targets, IGNORED where a word is not learned
IGNORED = -100


def build_model(architecture: ToyArchitecture, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A randomly initialised model (torch's global generator)."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=architecture.max_positions,
        initializer_range=architecture.init_std,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def pretrain(
    spec: PretrainSpec, excluded_questions: Set[str], out: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train a base model and write it, with its tokenizer, as an ordinary model folder at `out`.

    `excluded_questions` never appear in the text. `report` gets step, loss, running_loss, learning_rate and seconds.
    Returns a summary. The same spec gives the same weights on one thread. Raises UserError, and writes nothing, when
    the running loss ends above `spec.max_final_loss`.
    """
    started = time.perf_counter()
    switches_thinking = not spec.chains and spec.mixture.thinking_off is not None
    tokenizer = build_tokenizer(spec.architecture.max_positions, switches_thinking=switches_thinking)
    draw, kinds = _sequences(spec, tokenizer, excluded_questions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = build_model(spec.architecture, tokenizer).train()
    optimiser = make_adamw(model, spec.optimiser)
    losses: collections.deque[float] = collections.deque(maxlen=LOSS_WINDOW)
    target_tokens = 0
    for step in range(1, spec.steps + 1):
        rate = learning_rate(spec.optimiser, step, spec.steps)
        set_learning_rate(optimiser, rate)
        batch = [draw() for _ in range(spec.batch_size)]
        loss, tokens = _accumulate(model, batch, tokenizer.pad_token_id)
        clip_gradients(gradients(model), spec.optimiser.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss)
        target_tokens += tokens
        if step % REPORT_EVERY == 0 or step == spec.steps:
            report(
                {
                    "step": step,
                    "loss": loss,
                    "running_loss": sum(losses) / len(losses),
                    "learning_rate": rate,
                    "seconds": time.perf_counter() - started,
                }
            )
    final_loss = sum(losses) / len(losses)
    _check_gate(final_loss, spec)
    logging.disable_progress_bar()
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "final_loss": final_loss,
        "steps": spec.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "texts": dict(sorted(kinds.items())),
        "target_tokens": target_tokens,
        "excluded_questions": len(excluded_questions),
    }


def _sequences(
    spec: PretrainSpec, tokenizer: PreTrainedTokenizerFast, excluded: Set[str]
) -> tuple[Callable[[], Sequence], collections.Counter[str]]:
    """A function that samples the next sequence, and the counts by kind that it updates."""
    rng = random.Random(f"toy pretraining {spec.seed}")
    common = (END, excluded, rng)
    off = None if spec.chains else spec.mixture.thinking_off
    if spec.chains:
        maker = ChainTextMaker(spec.chains, _chat(tokenizer), *common)
    elif off is None:
        maker = TextMaker(spec.mixture, _chat(tokenizer), *common)
    else:
        maker = SwitchedTextMaker(
            spec.mixture, *(_chat(tokenizer, enable_thinking=on) for on in (True, False)), *common
        )
    vocabulary = tokenizer.get_vocab()
    kinds: collections.Counter[str] = collections.Counter()

    def draw() -> Sequence:
        text = maker.draw()
        kinds[text.kind] += 1
        return encode(text, vocabulary)

    return draw, kinds


def _chat(tokenizer: PreTrainedTokenizerFast, **options: bool) -> Callable[[str], str]:
    """A function that puts the text of a user message into the text of a whole prompt."""
    marker = "which"
    framed = tokenizer.apply_chat_template(
        [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True, **options
    )
    before, after = framed.split(marker)
    return lambda content: f"{before}{content}{after}"


def encode(text: Text, vocabulary: dict[str, int]) -> Sequence:
    """Token ids and next-token targets (same length). A word outside the vocabulary is a KeyError."""
    prompt = [vocabulary[word] for word in text.prompt.split()]
    target = [vocabulary[word] for word in text.target.split()]
    learned = [IGNORED if place in text.skipped else token for place, token in enumerate(target)]
    return prompt + target[:-1], [IGNORED] * (len(prompt) - 1) + learned


def _accumulate(model: Qwen3ForCausalLM, batch: list[Sequence], pad: int) -> tuple[float, int]:
    """Gradients of the mean loss over all learned tokens of the batch; returns that loss and their number.

    No attention mask: padding is on the right and attention is causal, so no learned token attends to it.
    """
    ordered = sorted(batch, key=lambda sequence: len(sequence[0]))
    size = math.ceil(len(ordered) / MICRO_BATCHES)
    tokens = sum(target != IGNORED for _, targets in batch for target in targets)
    total = 0.0
    for first in range(0, len(ordered), size):
        part = ordered[first : first + size]
        width = len(part[-1][0])
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in part])
        targets = torch.tensor([targets + [IGNORED] * (width - len(targets)) for _, targets in part])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        is_learned = targets != IGNORED
        logits = model.lm_head(hidden[is_learned])
        loss = functional.cross_entropy(logits, targets[is_learned], reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total, tokens


def _check_gate(final_loss: float, spec: PretrainSpec) -> None:
    if not final_loss <= spec.max_final_loss:
        raise UserError(
            f"the toy base model ended at a loss of {final_loss:.3f}, above max_final_loss {spec.max_final_loss}: its "
            f"search would be broken. Raise the pretraining steps (now {spec.steps}) or use another seed "
            f"(now {spec.seed})."
        )
