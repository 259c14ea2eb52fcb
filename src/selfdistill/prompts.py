"""Questions, chat prompts and the text around them: wording, token ids, instructions, identity.

Token ids are the interface: a chat template is rendered and tokenised once, by the tokenizer itself, and nobody
tokenises its text again (a second pass would add a second BOS). Templates are filled literally: only the named slots
are replaced, so `\\boxed{}` needs no escaping, neither in a template nor in a question.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError, TemplateSyntaxError

from selfdistill.schema.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfdistill.schema.common import Example

Message = dict[str, str]
Instruction = Literal["none", "boxed", "answer_line"]

#: What stands before and after a question, by kind of instruction: wire formats of docs/method.md 8.5.
INSTRUCTIONS: dict[str, tuple[str, str]] = {
    "none": ("", ""),
    "boxed": ("", "\nPlease reason step by step, and put your final answer within \\boxed{}."),
    "answer_line": (
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n",
        '\n\nRemember to put your answer on its own line after "Answer:".',
    ),
}

_DATE_CALL = re.compile(r"\bstrftime_now\s*\(")
_DATE_WITH_FORMAT = re.compile(r"""\bstrftime_now\s*\(\s*(["'])(?P<format>[^"'\\]*)\1\s*\)""")
_ID_CHARACTERS = 16


def fill(template: str, slots: Mapping[str, str]) -> str:
    """Replace each `{name}` of `slots` in one pass; other braces, and braces in the contents, stay as they are."""
    names = "|".join(re.escape(name) for name in slots)
    return re.sub(rf"\{{({names})\}}", lambda match: slots[match[1]], template)


def render_question(template: str, question: str) -> str:
    """Put a question into a question template.

    Raises UserError where the template lacks the slot {question}: every prompt would be the same.
    """
    if "{question}" not in template:
        raise UserError(
            f"question_template `{template}` lacks the slot {{question}}; write it where the question goes."
        )
    return fill(template, {"question": question})


def chat(question_text: str, system: str | None, examples: Sequence[Example] = ()) -> list[Message]:
    """The messages of one prompt: the system message where there is one, worked examples, then the user's."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for example in examples:
        messages.append({"role": "user", "content": example.question})
        messages.append({"role": "assistant", "content": example.completion})
    return [*messages, {"role": "user", "content": question_text}]


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], thinking: bool | None) -> list[int]:
    """Token ids of a chat up to and including the generation header, straight from the chat template.

    `thinking` is the template's enable_thinking; None passes nothing, so that the template's own default holds.
    Raises UserError for a tokenizer without a chat template, for one that prints today's date, and for what the
    template itself refuses, such as a system message.
    """
    template = tokenizer.chat_template
    if not template:
        raise UserError(
            f"the tokenizer of `{tokenizer.name_or_path}` has no chat template; "
            "set chat_template in the model's entry, or use an instruction-tuned model."
        )
    if isinstance(template, Mapping) and "default" not in template:
        raise UserError(
            f"the tokenizer of `{tokenizer.name_or_path}` has the chat templates {', '.join(template)} and no default: "
            "set chat_template in the model's entry to the text of one."
        )
    if prints_todays_date(template):
        raise UserError(
            f"the chat template of `{tokenizer.name_or_path}` prints today's date (strftime_now), so every day would "
            "give other prompts under the same key: set chat_date: YYYY-MM-DD in the model's entry, or chat_template."
        )
    options = {} if thinking is None else {"enable_thinking": thinking}
    try:
        ids = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **options
        )
    except TemplateError as error:
        said = " ".join(str(error).split())
        where = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
        raise UserError(
            f"the chat template of `{tokenizer.name_or_path}` refuses this prompt{where}: {said}. Change system, "
            "examples or thinking in the model's entry, or set its chat_template."
        ) from None
    return [int(token) for token in ids]


def prints_todays_date(template: str | Mapping[str, str]) -> bool:
    """Whether a chat template asks for the date of the day on which it is rendered."""
    return any(_DATE_CALL.search(text) for text in ([template] if isinstance(template, str) else template.values()))


def with_date(template: str, day: date) -> str:
    """A chat template that prints `day` in place of today. UserError for a format that is not written out."""

    def printed(call: re.Match[str]) -> str:
        return json.dumps(day.strftime(call["format"]), ensure_ascii=False)

    fixed = _DATE_WITH_FORMAT.sub(printed, template)
    if _DATE_CALL.search(fixed):
        raise UserError("chat_date: the chat template builds the format of its date; set chat_template instead.")
    return fixed


def strip_instruction(text: str, kind: Instruction) -> str:
    """Remove the instruction around a question, however often it was wrapped around it, and outer whitespace.

    A text without the instruction comes back stripped of whitespace only; callers compare to count those.
    """
    prefix, suffix = (part.strip() for part in INSTRUCTIONS[kind])
    text = text.strip()
    while prefix and text.startswith(prefix):
        text = text.removeprefix(prefix).strip()
    while suffix and text.endswith(suffix):
        text = text.removesuffix(suffix).strip()
    return text


def normalise_question(text: str) -> str:
    """The form in which two questions count as the same: no instruction, Unicode NFC, single spaces.

    Case stays, since A and a may be two quantities; NFKC is not used, since it would merge x² with x2.
    """
    for kind in ("boxed", "answer_line"):
        text = strip_instruction(text, kind)
    return " ".join(unicodedata.normalize("NFC", text).split())


def problem_id(question: str) -> str:
    """Identity of a problem: the first 16 hex digits of the sha256 of its normalised question."""
    # A lone surrogate (a file with broken escapes) must not stop a data set: it is hashed as it is.
    normalised = normalise_question(question).encode("utf-8", "surrogatepass")
    return hashlib.sha256(normalised).hexdigest()[:_ID_CHARACTERS]
