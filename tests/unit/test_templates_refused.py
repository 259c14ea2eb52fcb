"""What a tokenizer or chat template cannot do is one line; today's date never gets into a prompt."""

from __future__ import annotations

from datetime import date

import pytest

from chat_tokenizers import tokenizer as golden_tokenizer
from selfdistill.generation.loading import load_tokenizer
from selfdistill.prompts import chat, encode_chat, with_date
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import ModelSpec
from selfdistill.stages.model import chat_template
from selfdistill.stages.prompts import unknown_token_id
from small_specs import small

DATED = (
    "{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}{%- endif %}Today: {{ today }}\n"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def tokenizer(template):
    made = golden_tokenizer.__wrapped__("qwen3")
    made.chat_template = template
    return made


def text_of(made, **options) -> str:
    return made.decode(encode_chat(made, chat("1+1?", None), None, **options))


def test_a_template_that_prints_todays_date_is_refused_and_a_date_of_the_entry_takes_its_place(tmp_path):
    with pytest.raises(UserError, match=r"prints today's date.*chat_date: YYYY-MM-DD"):
        text_of(tokenizer(DATED))
    assert text_of(tokenizer(with_date(DATED, date(2024, 7, 26)))).startswith("Today: 26 Jul 2024\n")
    with pytest.raises(UserError, match="builds the format of its date"):
        with_date("{{ strftime_now('%d' + '%b') }}", date(2024, 7, 26))


def test_the_model_stage_writes_the_date_into_the_template_and_it_is_hashed(tmp_path):
    tokenizer(DATED).save_pretrained(tmp_path)
    pin = AssetPin(repo="a/b", revision="0" * 40)
    spec = small(ModelSpec, pin=pin, chat_date="2024-07-26")
    assert '"26 Jul 2024"' in chat_template(spec, tmp_path)
    assert chat_template(small(ModelSpec, pin=pin), tmp_path) is None
    assert "chat_date" in spec.identity() and "chat_date" not in small(ModelSpec, pin=pin).identity()


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (
            "{{ raise_exception('System role not supported') }}",
            "Be brief.",
            "refuses this prompt: System role not supp",
        ),
        ("{% for m in messages %}", None, r"refuses this prompt \(line 1\): Unexpected end of template"),
        ({"tool_use": "x", "rag": "y"}, None, "has the chat templates tool_use, rag and no default"),
        (None, None, "has no chat template"),
    ],
)
def test_what_a_chat_template_refuses_is_one_line(template, system, message):
    with pytest.raises(UserError, match=message) as caught:
        encode_chat(tokenizer(template), chat("1+1?", system), None)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_loaded_is_one_line(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["bos_token", "eos_token", "pad_token"])
def test_an_unknown_token_with_another_role_says_nothing_of_unknown_words(role):
    made = tokenizer("{{ bos_token }}")
    made.add_special_tokens({"unk_token": "<unk>"})
    assert unknown_token_id(made) == made.unk_token_id is not None
    setattr(made, role, made.unk_token)
    assert unknown_token_id(made) is None
