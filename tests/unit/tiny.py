"""A random Qwen3 of a few thousand weights and a word-level tokenizer with a ChatML template, made in memory."""

from __future__ import annotations

import torch

# Two threads that share cores with anything else spin at every barrier; these models are too small to gain.
torch.set_num_threads(1)

WORDS = [
    "<think>",
    "</think>",
    "\\boxed{",
    "}",
    "maybe",
    "check",
    "wait",
    "so",
    "yes",
    "no",
    "which",
    "solution",
    "solve",
]
NUMBERS = [str(number) for number in range(10)]
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
ROLES = ["system", "user", "assistant"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, "<unk>", *ROLES, *WORDS, *NUMBERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(
    vocabulary: int, *, tied: bool = True, hidden: int = 32, layers: int = 2, std: float = 0.15, seed: int = 0
):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        tie_word_embeddings=tied,
        max_position_embeddings=256,
        initializer_range=std,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()
