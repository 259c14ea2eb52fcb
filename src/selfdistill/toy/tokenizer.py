"""The tokenizer of the toy world: one token per word, with a chat template in Qwen3's manner.

    <|im_start|> user which mod 7 = r0 : A 6 B 3 C 0 D 8 <|im_end|> <|im_start|> assistant
    <think> maybe A 6 check r6 hmm no ... yes so 0 </think> \\boxed{ 0 } <|im_end|>

Numbers are whole tokens and residues (`r0`, `r1`, ...) are tokens of their own. The think tags and the
box are ordinary tokens: they survive `decode(..., skip_special_tokens=True)`. A word outside the
vocabulary becomes `UNKNOWN`, which no problem and no text of the toy world contains.
"""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfdistill.toy.problems import LABELS, LARGEST_MODULUS, LARGEST_NUMBER

PADDING, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
ROLES = ("system", "user", "assistant")
TASK_WORDS = ("which", "+", "mod", "=", ":")
ANSWER_WORDS = ("<think>", "</think>", "\\boxed{", "}", "yes", "no", "so")
#: The ten words of the paper (docs/method.md 10); how they are used: `mixture.py`.
EPISTEMIC_WORDS = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)
REPROMPT_WORDS = ("correct", "solution", "now", "solve")

_IF_OFF = "{%- if enable_thinking is defined and enable_thinking is false -%}"
_CHAT = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|> ' + message['role'] + ' ' + message['content'] + ' <|im_end|> ' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|> assistant' -}}{%- endif -%}"
)
#: Refuses `enable_thinking: false`, for models that were never shown an empty think block.
ALWAYS_THINKING = (
    f"{_IF_OFF}{{{{- raise_exception('the toy model cannot switch thinking off: set thinking to null') -}}}}"
    f"{{%- endif -%}}{_CHAT}"
)
#: `enable_thinking: false` ends the prompt in an empty think block, as Qwen3's template does.
SWITCHED_THINKING = f"{_CHAT}{_IF_OFF}{{{{- ' <think> </think>' -}}}}{{%- endif -%}}"


def vocabulary() -> list[str]:
    """All words, in the order of their ids; the four special tokens come first."""
    numbers = [str(number) for number in range(LARGEST_NUMBER + 1)]
    residues = [f"r{residue}" for residue in range(LARGEST_MODULUS)]
    special = [PADDING, START, END, UNKNOWN]
    return [
        *special,
        *ROLES,
        *TASK_WORDS,
        *LABELS,
        *numbers,
        *residues,
        *ANSWER_WORDS,
        *REPROMPT_WORDS,
        *EPISTEMIC_WORDS,
    ]


def build_tokenizer(max_positions: int, *, switches_thinking: bool = False) -> PreTrainedTokenizerFast:
    """A fresh tokenizer; `max_positions` is the longest sequence of its model in tokens."""
    words = {word: index for index, word in enumerate(vocabulary())}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PADDING,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[START],
        chat_template=SWITCHED_THINKING if switches_thinking else ALWAYS_THINKING,
        model_max_length=max_positions,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
