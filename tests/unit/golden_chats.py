"""The chats of tests/golden/chat: what is rendered.

`PYTHONPATH=tests/unit python tests/unit/golden_chats.py` writes the renderings anew. A change of a rendering is a
change of what models read: look at the difference before it is accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from chat_tokenizers import GOLDEN, REAL, tokenizer
from instructions import add_instruction
from selfdistill.contexts import encode_teacher_prompt
from selfdistill.prompts import Message, chat, encode_chat
from selfdistill.schema.common import Example, RepromptTemplate

MODELS = (*REAL, "toy")
PAPER = RepromptTemplate(
    frame="{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
    solution="\nCorrect solution:\n\n{successful_previous_attempt}",
    feedback="\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}",
)
TOY = RepromptTemplate(
    frame="{prompt}{solution}{feedback} now solve", solution=" correct solution : {successful_previous_attempt}"
)
QUESTION = add_instruction("What is the value of $\\frac{6}{3}$ for {x}?", "boxed")
TOY_QUESTION = "which mod 7 = r0 : A 6 B 3 C 0 D 8"
THOUGHT = "<think>\nmaybe 3? Wait, no.\n</think>\n\nThe answer is \\boxed{2}."
TOY_THOUGHT = "<think> maybe A 6 check r6 no so 0 </think> \\boxed{ 0 }"
EXAMPLE = Example(question="What is 1+1?", completion="<think>\neasy\n</think>\n\n\\boxed{2}")


@dataclass(frozen=True)
class Chat:
    """One prompt; with a demonstration it is the teacher's."""

    name: str
    messages: list[Message]
    thinking: bool | None = None
    demonstration: str | None = None

    def encode(self, model: str) -> list[int]:
        if self.demonstration is None:
            return encode_chat(tokenizer(model), self.messages, self.thinking)
        reprompt = TOY if model == "toy" else PAPER
        ids, is_truncated = encode_teacher_prompt(
            tokenizer(model), self.messages, reprompt, self.demonstration, self.thinking, 10_000
        )
        assert not is_truncated
        return ids


def chats(model: str) -> Iterator[Chat]:
    if model == "toy":
        yield Chat("student", chat(TOY_QUESTION, None))
        yield Chat("teacher", chat(TOY_QUESTION, None), demonstration=TOY_THOUGHT)
        return
    for thinking in (None, True, False) if model == "qwen3" else (None,):
        suffix = {None: "", True: " thinking", False: " not thinking"}[thinking]
        yield Chat(f"student{suffix}", chat(QUESTION, None), thinking)
        yield Chat(f"teacher{suffix}", chat(QUESTION, None), thinking, THOUGHT)
    yield Chat("student with system message", chat(QUESTION, "Be brief."))
    yield Chat("teacher with system message", chat(QUESTION, "Be brief."), demonstration=THOUGHT)
    yield Chat("student with an example", chat(QUESTION, None, [EXAMPLE]))


def rendering(model: str, case: Chat) -> dict[str, object]:
    ids = case.encode(model)
    return {"name": case.name, "text": tokenizer(model).decode(ids, skip_special_tokens=False), "ids": ids}


def write() -> None:
    for model in MODELS:
        lines = [json.dumps(rendering(model, case), ensure_ascii=False) for case in chats(model)]
        (GOLDEN / model / "renderings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
