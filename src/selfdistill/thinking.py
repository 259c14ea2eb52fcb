"""Where a completion thinks: the marks of a model, and the answer that is left without what they enclose.

The two rules are those of docs/method.md 9. Marks are texts. Where they are special tokens, decoding drops them, so a
completion is decoded again with them before it is stripped: otherwise all of the thinking would pass for the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from selfdistill.schema.common import ThinkingMarks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The paper's marks, which are looked for in every text.
PAPER_MARKS = ThinkingMarks(opening="<think>", closing="</think>")
#: Marks of published models; they count where the chat template or the vocabulary has them.
KNOWN_MARKS = (
    ThinkingMarks(opening="[THINK]", closing="[/THINK]"),
    ThinkingMarks(opening="<|channel|>analysis<|message|>", closing="<|start|>assistant<|channel|>final<|message|>"),
    ThinkingMarks(opening="<|begin_of_thought|>", closing="<|end_of_thought|>"),
    ThinkingMarks(opening="<|START_THINKING|>", closing="<|END_THINKING|>"),
    ThinkingMarks(opening="<seed:think>", closing="</seed:think>"),
    ThinkingMarks(opening="<thinking>", closing="</thinking>"),
    ThinkingMarks(opening="<thought>", closing="</thought>"),
    ThinkingMarks(opening="<reasoning>", closing="</reasoning>"),
)
#: Tokens at the end of a prompt in which an opening mark may lie.
_END_OF_PROMPT = 24


class Answer(NamedTuple):
    """A completion without its thinking; whether anything was removed, and whether thinking is left."""

    text: str
    is_stripped: bool
    has_leaked: bool


@dataclass(frozen=True)
class Thinking:
    """The marks of one model. Without a tokenizer texts are taken as they are, and no prompt opens the thinking."""

    marks: tuple[ThinkingMarks, ...] = (PAPER_MARKS,)
    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, marks: Sequence[ThinkingMarks] | None = None) -> Thinking:
        """The marks of a model's entry; None finds them in the chat template and among the added tokens."""
        return cls((PAPER_MARKS, *_found(tokenizer)) if marks is None else tuple(marks), tokenizer)

    def answer(self, text: str, token_ids: Sequence[int] = (), prompt_ids: Sequence[int] = ()) -> Answer:
        """The answer of a completion. `text` is its decoded form, `token_ids` are its tokens; `prompt_ids` show whether
        the prompt opened the thinking: then a text without a closing mark is thinking from end to end.
        """
        marked = self._marked(text, token_ids)
        left = self._up_to_closing.sub("", self._block.sub("", marked), count=1)
        is_all_thinking = self._opens(prompt_ids) and not self._closing.search(marked)
        return Answer(left, left != marked, is_all_thinking or self._mark.search(left) is not None)

    def _marked(self, text: str, token_ids: Sequence[int]) -> str:
        """The text with those marks that decoding dropped since they are special tokens."""
        if not self._special_marks:
            return text
        pieces: list[str] = []
        begun: list[int] = []
        position = 0
        while position < len(token_ids):
            mark = next((m for m, ids in self._special_marks if _starts(token_ids, position, ids)), None)
            if mark is None:
                begun.append(token_ids[position])
                position += 1
                continue
            pieces += [self._decode(begun), mark]
            begun = []
            position += len(dict(self._special_marks)[mark])
        return "".join([*pieces, self._decode(begun)])

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True) if token_ids else ""

    def _opens(self, prompt_ids: Sequence[int]) -> bool:
        if self.tokenizer is None or not prompt_ids:
            return False
        end = self.tokenizer.decode(prompt_ids[-_END_OF_PROMPT:], skip_special_tokens=False).rstrip()
        return end.endswith(tuple(mark.opening for mark in self.marks))

    @cached_property
    def _special_marks(self) -> tuple[tuple[str, list[int]], ...]:
        """(mark, its token ids) of the marks that hold a special token."""
        if self.tokenizer is None:
            return ()
        special = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        texts = [text for mark in self.marks for text in (mark.opening, mark.closing)]
        tokens = [(text, self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        return tuple((text, ids) for text, ids in tokens if special.intersection(ids))

    @cached_property
    def _block(self) -> re.Pattern[str]:
        pairs = (f"{re.escape(mark.opening)}.*?{re.escape(mark.closing)}" for mark in self.marks)
        return re.compile(rf"(?:{'|'.join(pairs)})\s*", re.DOTALL)

    @cached_property
    def _up_to_closing(self) -> re.Pattern[str]:
        return re.compile(rf"\A.*?(?:{self._closing.pattern})\s*", re.DOTALL)

    @cached_property
    def _closing(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(mark.closing) for mark in self.marks))

    @cached_property
    def _mark(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(text) for mark in self.marks for text in (mark.opening, mark.closing)))


def _found(tokenizer: PreTrainedTokenizerBase) -> Iterator[ThinkingMarks]:
    template = tokenizer.chat_template or ""
    text = "\n".join(template.values()) if isinstance(template, Mapping) else template
    vocabulary = tokenizer.get_added_vocab()
    return (mark for mark in KNOWN_MARKS if mark.opening in text or mark.closing in text or mark.closing in vocabulary)


def _starts(token_ids: Sequence[int], position: int, mark: Sequence[int]) -> bool:
    return list(token_ids[position : position + len(mark)]) == list(mark)
