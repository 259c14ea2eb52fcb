"""Golden chats: true chat templates and special tokens of the studied models, over a small stand-in BPE.

Templates and where they were seen: tests/golden/chat/README.md. What depends on a model's own vocabulary is checked
where its tokenizer has been fetched.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path

import pytest

from chat_tokenizers import GOLDEN, REAL, facts, template, tokenizer
from golden_chats import MODELS, PAPER, QUESTION, THOUGHT, chats
from selfdistill.assets import Assets
from selfdistill.contexts import encode_teacher_prompt
from selfdistill.generation.base import Completion
from selfdistill.prompts import chat, encode_chat
from selfdistill.rollouts import Prompt, Rollout
from selfdistill.schema.assets import read_assets
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Sdpo
from selfdistill.thinking import Thinking
from selfdistill.training.data import CONTEXT
from selfdistill.training.methods import Policy
from selfdistill.training.methods.sdpo import SdpoMethod

ASSETS = {
    "qwen3": "qwen3_8b",
    "deepseek_r1_distill_qwen": "deepseek_r1_distill_qwen_7b",
    "olmo3_instruct": "olmo3_7b_instruct",
}
OLMO_DEFAULT = (
    "<|im_start|>system\nYou are a helpful function-calling AI assistant. You do not currently have access to any "
    "functions. <functions></functions><|im_end|>\n"
)


@cache
def golden(model: str) -> dict[str, dict]:
    lines = (GOLDEN / model / "renderings.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


# --- where the templates come from -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", REAL)
def test_a_template_has_the_digest_that_was_recorded_at_the_pinned_revision(model):
    known = facts(model)
    assert hashlib.sha256(template(model).encode()).hexdigest() == known["chat_template_sha256"]
    pinned = read_assets(Path(__file__).parents[2]).entry(ASSETS[model])
    assert (known["model"], known["revision"]) == (pinned.repo, pinned.revision)
    assert known["licence"].lower() == pinned.licence


@pytest.mark.parametrize("model", ["qwen3", "deepseek_r1_distill_qwen"])
def test_the_template_is_the_one_that_trl_knows_this_model_by(model):
    found = importlib.util.find_spec("trl")
    if found is None:
        pytest.skip("trl is not installed")
    name = "deepseek_r1_distill" if model.startswith("deepseek") else model
    path = Path(str(found.origin)).parent / "chat_templates" / f"{name}.jinja"
    assert path.read_text(encoding="utf-8") == template(model)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("user", "Hello!")], OLMO_DEFAULT + "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"),
        (
            [("system", "You are a helpful assistant."), ("user", "Hello!")],
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            [("user", "Hello"), ("assistant", "Hi there!"), ("user", "How are you?")],
            OLMO_DEFAULT + "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi there!<|im_end|>\n"
            "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_olmo3_is_rendered_as_an_independent_renderer_does(messages, expected):
    """Expectations of the tests of ollama's renderer (MIT), model/renderers/olmo3_test.go."""
    chat_messages = [{"role": role, "content": content} for role, content in messages]
    made = tokenizer("olmo3_instruct")
    assert made.decode(encode_chat(made, chat_messages, None), skip_special_tokens=False) == expected


@pytest.mark.parametrize("model", REAL)
def test_the_fetched_tokenizer_has_this_template_and_renders_the_same_texts(model):
    folder = Assets.here(Path(__file__).parents[2]).model_place(ASSETS[model])
    if folder is None:
        pytest.skip(f"the tokenizer of {ASSETS[model]} is not here: selfdistill assets fetch {ASSETS[model]}")
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(folder)
    assert real.chat_template == template(model)
    for case in chats(model):
        if case.demonstration is None:
            ids = encode_chat(real, case.messages, case.thinking)
            assert real.decode(ids, skip_special_tokens=False) == golden(model)[case.name]["text"]


# --- renderings ------------------------------------------------------------------------------------------------------

CASES = [(model, case) for model in MODELS for case in chats(model)]


@pytest.mark.parametrize(("model", "case"), CASES, ids=lambda value: getattr(value, "name", value))
def test_prompts_of_student_and_teacher_are_rendered_to_the_letter_and_the_id(model, case):
    ids = case.encode(model)
    assert tokenizer(model).decode(ids, skip_special_tokens=False) == golden(model)[case.name]["text"]
    assert ids == golden(model)[case.name]["ids"]


def test_every_golden_rendering_is_compared():
    assert {(model, name) for model in MODELS for name in golden(model)} == {(m, case.name) for m, case in CASES}


@pytest.mark.parametrize("model", MODELS)
def test_the_teacher_sees_the_students_prompt_with_the_demonstration_in_it_and_the_same_header(model):
    known = golden(model)
    for name, student in known.items():
        if not name.startswith("student") or name.endswith("example"):
            continue
        teacher = known[name.replace("student", "teacher")]
        text, shown = student["text"], teacher["text"]
        question_end = text.index(" <|im_end|>") if model == "toy" else text.index("\\boxed{}.") + len("\\boxed{}.")
        assert shown.startswith(text[:question_end])
        assert shown.endswith(text[question_end:])


def test_thinking_off_is_an_empty_block_in_the_prompt_and_on_is_nothing():
    known = golden("qwen3")
    assert known["student thinking"]["ids"] == known["student"]["ids"]
    off = known["student not thinking"]
    assert off["text"] == known["student"]["text"] + "<think>\n\n</think>\n\n"
    think, end = (tokenizer("qwen3").convert_tokens_to_ids(tag) for tag in ("<think>", "</think>"))
    assert [off["ids"].count(tag) for tag in (think, end)] == [1, 1]


def test_deepseek_opens_thinking_in_the_prompt_and_ignores_the_thinking_flag():
    made = tokenizer("deepseek_r1_distill_qwen")
    ids = [encode_chat(made, chat(QUESTION, None), thinking) for thinking in (None, True, False)]
    assert ids[0] == ids[1] == ids[2]
    assert made.decode(ids[0]).endswith("<｜Assistant｜><think>\n")


@pytest.mark.parametrize("model", ["qwen3", "deepseek_r1_distill_qwen"])
def test_past_turns_of_the_assistant_lose_their_thinking(model):
    text = golden(model)["student with an example"]["text"]
    assert "\\boxed{2}" in text
    assert "easy" not in text


def test_there_is_one_bos_although_the_tokenizer_would_add_a_second():
    made = tokenizer("deepseek_r1_distill_qwen")
    for entry in golden("deepseek_r1_distill_qwen").values():
        assert entry["ids"].count(made.bos_token_id) == 1
        assert made(entry["text"])["input_ids"].count(made.bos_token_id) == 2  # What tokenising the text again gives.
    for model in ("qwen3", "olmo3_instruct"):
        assert tokenizer(model).bos_token is None


# --- removing the thinking -------------------------------------------------------------------------------------------

STRIPPED = [
    ("<think>\na\n</think>\n\nB", "B", False),
    ("a\n</think>\n\nB", "B", False),
    ("B", "B", False),
    ("<think>\nnever ends \\boxed{2}", "<think>\nnever ends \\boxed{2}", True),
    ("<think>a</think>B<think>c</think>D", "BD", False),
    ("<think>a<think>b</think>C</think>D", "D", False),
    ("<think>a</think>B</think>C</think>D", "C</think>D", True),
    ("<think>a</think>B<think>c", "B<think>c", True),
    ("<think>\n\n</think>\n\nB", "B", False),
]


@pytest.mark.parametrize("model", REAL)
@pytest.mark.parametrize(("text", "expected", "leaks"), STRIPPED)
def test_think_tags_survive_decoding_and_are_stripped_from_it(model, text, expected, leaks):
    made = tokenizer(model)
    ids = made(text, add_special_tokens=False)["input_ids"] + [made.eos_token_id]
    decoded = made.decode(ids, skip_special_tokens=True)
    assert decoded == text
    assert Thinking.of(made).answer(decoded, ids) == (expected, text != expected, leaks)


def test_think_tags_of_the_toy_survive_decoding():
    made = tokenizer("toy")
    decoded = made.decode(
        made("<think> maybe A 6 </think> \\boxed{ 0 } <|im_end|>")["input_ids"], skip_special_tokens=True
    )
    assert Thinking.of(tokenizer("toy")).answer(decoded).text.strip() == "\\boxed{ 0 }"


def sdpo(model: str, thinking: bool | None) -> SdpoMethod:
    settings = Sdpo(context="solution_no_think", reprompt=PAPER)
    return SdpoMethod(settings, Policy(tokenizer(model), thinking, max_completion_tokens=100))


def group(model: str, thinking: bool | None, texts: list[str]) -> list[Rollout]:
    messages = chat(QUESTION, None)
    prompt = Prompt(0, "p", "", "", "2", messages, encode_chat(tokenizer(model), messages, thinking))
    return [
        Rollout(
            prompt, sample, Completion([1], [0.0], "eos"), text, "correct" if text else "wrong", float(bool(text)), "2"
        )
        for sample, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("model", "thinking", "text", "shown", "leaks"),
    [
        ("qwen3", True, "<think>\na\n</think>\n\nSo \\boxed{2}", "So \\boxed{2}", False),
        ("qwen3", True, "<think>\nnever ends \\boxed{2}", "<think>\nnever ends \\boxed{2}", True),
        ("qwen3", False, "So \\boxed{2}", "So \\boxed{2}", False),
        ("deepseek_r1_distill_qwen", None, "a\n</think>\n\nSo \\boxed{2}", "So \\boxed{2}", False),
        # The prompt opened the thinking, so this is thinking from end to end, and no tag shows it.
        ("deepseek_r1_distill_qwen", None, "never ends \\boxed{2}", "never ends \\boxed{2}", True),
        ("deepseek_r1_distill_qwen", None, "a</think>b</think>\\boxed{2}", "b</think>\\boxed{2}", True),
        ("olmo3_instruct", None, "So \\boxed{2}", "So \\boxed{2}", False),
    ],
)
def test_thinking_that_leaks_into_a_teachers_prompt_is_counted(model, thinking, text, shown, leaks):
    plans = sdpo(model, thinking).plan_step([group(model, thinking, [text, ""])])[0]
    assert not plans[0].is_supervised  # The only success is its author's own.
    assert plans[1].teachers[CONTEXT].has_leaked_thinking is leaks
    seen = tokenizer(model).decode(plans[1].teachers[CONTEXT].ids, skip_special_tokens=False)
    assert f"Correct solution:\n\n{shown}\n\nCorrectly solve" in seen


# --- cutting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "thinking"), [("qwen3", True), ("qwen3", False), *((m, None) for m in REAL[1:])])
def test_only_the_demonstration_is_ever_cut(model, thinking):
    made = tokenizer(model)
    messages = chat(QUESTION, "Be brief.")
    demonstration = THOUGHT + " Wait, é漢🙂 the question" * 4

    def encode(text: str, limit: int) -> tuple[list[int], bool]:
        return encode_teacher_prompt(made, messages, PAPER, text, thinking, limit)

    full, _ = encode(demonstration, 10_000)
    bare, _ = encode("", 10_000)
    head, tail = made.decode(bare, skip_special_tokens=False).split("Correct solution:\n\n")
    for limit in range(len(bare), len(full) + 1):
        ids, is_truncated = encode(demonstration, limit)
        text = made.decode(ids, skip_special_tokens=False)
        assert len(ids) <= limit
        assert is_truncated is (limit < len(full))
        assert text.startswith(f"{head}Correct solution:\n\n")
        assert text.endswith(tail)
        assert demonstration.startswith(text[len(head) + len("Correct solution:\n\n") : len(text) - len(tail)])
    with pytest.raises(UserError, match="max_reprompt_tokens"):
        encode(demonstration, len(bare) - 1)
