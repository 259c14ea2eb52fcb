"""Tokenizers for the golden chats: true templates and special tokens over a small stand-in BPE, and the toy's own."""

from __future__ import annotations

import json
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from selfdistill.toy.tokenizer import build_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "chat"
REAL = ("qwen3", "deepseek_r1_distill_qwen", "olmo3_instruct")
#: Words that are one token; everything else is bytes.
_WORDS = ("Correct", "Ġsolution", "Ġquestion", "user", "assistant", "system", "think", "Ġanswer", "Wait", "Ġthe")


def facts(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "model.json").read_text(encoding="utf-8"))


def template(name: str) -> str:
    return (GOLDEN / name / "chat_template.jinja").read_bytes().decode("utf-8")


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    if name == "toy":
        return build_tokenizer(512)
    known = facts(name)
    made = PreTrainedTokenizerFast(
        tokenizer_object=_bytes_and_words(),
        chat_template=template(name),
        clean_up_tokenization_spaces=False,
        **{role: known[role] for role in ("bos_token", "eos_token", "pad_token") if known[role] is not None},
    )
    made.add_tokens(
        [AddedToken(token["content"], special=token["special"], normalized=False) for token in known["added_tokens"]]
    )
    if known["adds_bos"]:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$0 $A".replace("$0", known["bos_token"]), special_tokens=[(known["bos_token"], made.bos_token_id)]
        )
    return made


def _bytes_and_words() -> Tokenizer:
    """A byte-level BPE whose merges are written out, so that its ids never change."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        starts = list(accumulate(word))
        for start, letter in zip(starts, word[1:], strict=False):
            if (start, letter) not in merges:
                merges.append((start, letter))
                tokens.append(start + letter)
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend
