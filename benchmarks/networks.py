"""The networks, the tokenizer and the completion lengths that the benchmarks share; all random, all made on the spot.

Lengths: most completions are short and a few are long, as reasoning lengths are: a log-normal distribution whose
median is a fifth of the limit (sigma 0.8), cut at 2 tokens and at the limit, drawn once with a fixed seed. Both sides
are made to end each completion at its length: the end-of-sequence token has no chance before and no rival then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: toy: the study's own network (docs/toy.md). The others: about 20 and 100 million weights.
SIZES: dict[str, dict[str, int]] = {
    "toy": {
        "vocab_size": 74, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 168,
    },
    # The same widths in heads of 32, the smallest that vLLM's CPU build computes.
    "toy, heads of 32": {
        "vocab_size": 74, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 168,
    },
    "20M": {
        "vocab_size": 8192, "hidden_size": 384, "num_hidden_layers": 9, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1280,
    },
    "100M": {
        "vocab_size": 32768, "hidden_size": 640, "num_hidden_layers": 16, "num_attention_heads": 10,
        "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 2176,
    },
}  # fmt: skip
POSITIONS = 1024
PADDING, START, END, UNKNOWN = 0, 1, 2, 3
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<start> ' + message['role'] + ' ' + message['content'] + ' <end> ' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start> assistant' -}}{%- endif -%}"
)


def make_network(size: str) -> Any:
    """A Qwen3 with random weights."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        **SIZES[size],
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PADDING,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PADDING, do_sample=True)
    return model


def make_tokenizer(size: str) -> Any:
    """One token per word; every id of the vocabulary is a word, so that text and ids go back and forth."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "<end>", "<unknown>", "system", "user", "assistant"]
    words += [f"w{index}" for index in range(len(words), SIZES[size]["vocab_size"])]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        additional_special_tokens=["<start>"],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def completion_lengths(count: int, limit: int, seed: int = 0) -> list[int]:
    """Lengths in tokens, the end-of-sequence token among them."""
    import numpy as np

    drawn = np.random.default_rng(seed).lognormal(mean=np.log(limit / 5), sigma=0.8, size=count)
    return np.clip(np.rint(drawn), 2, limit).astype(int).tolist()


def make_questions(count: int, words: int, vocabulary: int) -> list[list[dict[str, str]]]:
    """Chats of one question, about `words` words each (between two thirds and four thirds)."""
    import numpy as np

    draw = np.random.default_rng(1)
    lengths = draw.integers(2 * words // 3, 4 * words // 3 + 1, count)
    texts = [" ".join(f"w{index}" for index in draw.integers(7, vocabulary, length)) for length in lengths]
    return [[{"role": "user", "content": text}] for text in texts]


def force_lengths_in_library(lengths: Sequence[int], prompt_width: int) -> Any:
    """A logits processor for the library's `generate`, one length a row."""
    import torch
    from transformers import LogitsProcessorList

    ends = torch.tensor(lengths)

    def process(ids: Any, scores: Any) -> Any:
        # In place, and on one column except where a row ends: as little work as can be.
        scores[:, END] = -torch.inf
        ending = ends == ids.shape[1] - prompt_width + 1
        if bool(ending.any()):
            scores[ending] = -torch.inf
            scores[ending, END] = 0.0
        return scores

    return LogitsProcessorList([process])


def force_lengths_in_torch_sampler(length_of_seed: dict[int, int]) -> None:
    """Make our sampler end each row at the length that belongs to its seed."""
    import torch

    from selfdistill.generation import torch_sampler

    draw_tokens, draw = torch_sampler.draw_tokens, torch_sampler._Decoding.draw
    running: list[Any] = []

    def forced_tokens(logits: Any, uniforms: Any, sampling: Any) -> Any:
        tokens, logprobs = draw_tokens(logits, uniforms, sampling)
        decoding, position = running
        tokens = torch.where(tokens == END, UNKNOWN, tokens)
        ends = torch.tensor([length_of_seed[int(seed)] for seed in decoding.seeds_A]) == position + 1
        return torch.where(ends, END, tokens), logprobs

    def watched(self: Any, position: int, eos: Any) -> int:
        running[:] = self, position
        return draw(self, position, eos)

    torch_sampler.draw_tokens, torch_sampler._Decoding.draw = forced_tokens, watched
