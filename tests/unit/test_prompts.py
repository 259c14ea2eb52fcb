"""Prompts: wording, chat templates, think tags, instructions, identity of problems."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from instructions import add_instruction
from selfdistill.prompts import (
    chat,
    encode_chat,
    fill,
    normalise_question,
    problem_id,
    render_question,
    strip_instruction,
)
from selfdistill.schema.common import Example
from selfdistill.schema.errors import UserError
from small_tokenizer import byte_tokenizer

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_fill_touches_only_the_named_slots():
    assert fill("{a} \\boxed{} {c} {b}", {"a": "{b}", "b": "{}"}) == "{b} \\boxed{} {c} {}"


def test_a_question_with_braces_goes_into_a_template_with_braces():
    question = "Simplify \\frac{1}{2} for {question}"
    assert render_question("{question}" + BOXED, question) == question + BOXED


def test_a_question_template_without_its_slot_is_refused():
    with pytest.raises(UserError, match="lacks the slot {question}"):
        render_question("Solve it.", "1+1")


def test_chat_has_a_system_message_only_where_one_is_given():
    assert chat("q", None) == [{"role": "user", "content": "q"}]
    example = Example(question="1?", completion="2")
    assert [m["content"] for m in chat("q", "s", [example])] == ["s", "1?", "2", "q"]
    assert [m["role"] for m in chat("q", None, [example])] == ["user", "assistant", "user"]
    assert chat("q", "s") == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("thinking", "tail"),
    [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")],
)
def test_chat_ids_are_those_of_the_template_and_end_with_the_generation_header(tokenizer, thinking, tail):
    ids = encode_chat(tokenizer, chat("What is 1+1?", "Be kind."), thinking)
    expected = (
        "<bos><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhat is 1+1?<|im_end|>\n"
        "<|im_start|>assistant\n" + tail
    )
    assert tokenizer.decode(ids) == expected
    assert all(type(token) is int for token in ids)


def test_there_is_exactly_one_bos_although_the_tokenizer_would_add_another(tokenizer):
    ids = encode_chat(tokenizer, chat("hello", None), None)
    assert ids.count(tokenizer.bos_token_id) == 1
    text = tokenizer.apply_chat_template(chat("hello", None), tokenize=False, add_generation_prompt=True)
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 2  # The mistake this guards against.


def test_the_thinking_flag_reaches_the_template_only_when_set(tokenizer):
    probe = byte_tokenizer()
    probe.chat_template = "{{- 'set' if enable_thinking is defined else 'unset' -}}"
    assert probe.decode(encode_chat(probe, chat("q", None), None)) == "unset"
    assert probe.decode(encode_chat(probe, chat("q", None), True)) == "set"


def test_a_tokenizer_without_chat_template_is_a_users_mistake():
    plain = byte_tokenizer()
    plain.chat_template = None
    with pytest.raises(UserError, match="chat_template"):
        encode_chat(plain, chat("q", None), None)


def test_the_official_rewriting_of_a_prompt_is_reproduced():
    before = (
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
        'What is $1+1$?\n\nRemember to put your answer on its own line after "Answer:".'
    )
    question = strip_instruction(before, "answer_line")
    assert question == "What is $1+1$?"
    assert add_instruction(question, "boxed") == "What is $1+1$?" + BOXED
    assert add_instruction(question, "answer_line") == before


@pytest.mark.parametrize("kind", ["none", "boxed", "answer_line"])
@given(text=st.text(max_size=60))
def test_instructions_are_idempotent_and_inverse(kind, text):
    wrapped = add_instruction(text, kind)
    assert add_instruction(wrapped, kind) == wrapped
    stripped = strip_instruction(wrapped, kind)
    assert stripped == strip_instruction(text, kind) == strip_instruction(stripped, kind)


@given(st.text(max_size=40).map(str.strip).filter(bool))
def test_rewriting_between_the_two_instructions_is_idempotent_both_ways(text):
    """What a data set does on loading (strip) and a prompt on rendering (template): there, again, and back."""
    config = yaml.safe_load((Path(__file__).parents[2] / "config/config.yaml").read_text(encoding="utf-8"))
    answer_line = add_instruction(text, "answer_line")
    boxed = render_question(config["questions"]["boxed"], strip_instruction(answer_line, "answer_line"))
    assert boxed == add_instruction(text, "boxed")
    again = render_question(config["questions"]["boxed"], strip_instruction(boxed, "boxed"))
    assert again == boxed
    back = render_question(config["questions"]["answer_line"], strip_instruction(boxed, "boxed"))
    assert back == answer_line
    assert problem_id(boxed) == problem_id(answer_line) == problem_id(text)


def test_an_instruction_that_was_appended_twice_is_removed_twice():
    assert strip_instruction("q" + BOXED + BOXED, "boxed") == "q"


def test_another_instruction_is_left_alone():
    assert strip_instruction("q" + BOXED, "answer_line") == "q" + BOXED
    assert strip_instruction(" q ", "boxed") == "q"


def test_normalisation_ignores_instruction_spacing_and_composition_but_not_case():
    assert normalise_question("  How  many\n\tcaf\u0065\u0301s?" + BOXED) == "How many caf\u00e9s?"
    assert normalise_question("Find A") != normalise_question("Find a")
    assert normalise_question("x²") != normalise_question("x2")
    assert normalise_question("1 2") != normalise_question("12")


def test_problem_id_is_the_digest_of_the_normalised_question():
    expected = hashlib.sha256(b"What is 1+1?").hexdigest()[:16]
    assert problem_id("What is  1+1?\n") == problem_id("What is 1+1?" + BOXED) == expected


def test_problem_id_accepts_broken_text():
    assert len(problem_id("lone \ud800 surrogate \x00")) == 16


@pytest.mark.data
def test_every_evaluation_prompt_loses_its_instruction_and_gets_it_back():
    root = os.environ.get("SELFDISTILL_TEST_DATA")
    if not root:
        pytest.skip("SELFDISTILL_TEST_DATA is not set")
    import pyarrow.parquet as pq

    for name, rows in (("aime24", 30), ("aime25", 30), ("amc23", 40), ("math500", 500)):
        prompts = pq.read_table(Path(root, "math", "evaluation", f"{name}.parquet")).column("prompt").to_pylist()
        texts = [(json.loads(p) if isinstance(p, str) else p)[-1]["content"] for p in prompts]
        questions = [strip_instruction(text, "boxed") for text in texts]
        assert len(questions) == rows
        assert not any("put your final answer" in question for question in questions)
        # Three questions end in whitespace of their own, which is dropped.
        changed = [i for i, text in enumerate(texts) if add_instruction(questions[i], "boxed") != text]
        assert changed == {"aime25": [1, 19], "amc23": [30]}.get(name, [])
