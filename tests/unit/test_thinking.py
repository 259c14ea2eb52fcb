"""Thinking and its marks: found, decoded, removed; what is left is counted, and a step that removes nothing stops."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from chat_tokenizers import tokenizer as golden_tokenizer
from selfdistill.contexts import Attempt, ProblemAttempts, build_context
from selfdistill.generation import Completion
from selfdistill.prompts import chat, encode_chat
from selfdistill.rollouts import Prompt, Rollout
from selfdistill.schema.common import RepromptTemplate, ThinkingMarks
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods.sdpo import Sdpo
from selfdistill.thinking import KNOWN_MARKS, Answer, Thinking
from selfdistill.training import guards
from selfdistill.training.data import CONTEXT, RowPlan, TeacherPrompt
from selfdistill.training.methods import Policy
from selfdistill.training.methods.sdpo import SdpoMethod
from selfdistill.training.metrics import teacher_metrics

REPROMPT = RepromptTemplate(
    frame="{prompt}{solution}{feedback}!", solution="\n[{successful_previous_attempt}]\n", feedback="{feedback_raw}"
)


def tokenizer(template: str = "", special: tuple[str, ...] = (), ordinary: tuple[str, ...] = ()):
    """A byte-level tokenizer with these added tokens and this chat template (without one: ChatML)."""
    made = golden_tokenizer.__wrapped__("qwen3")
    made.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in ordinary])
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    chatml = "{% for m in messages %}" + turn + "{% endfor %}<|im_start|>assistant\n"
    made.chat_template = template or chatml
    return made


def ids_of(made, text: str) -> list[int]:
    return made(text, add_special_tokens=False)["input_ids"] + [made.eos_token_id]


def decoded(made, ids: list[int]) -> str:
    return made.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>B", "B"),
        ("a</think>B", "B"),
        ("B", "B"),
        ("<think>x", "<think>x"),
        ("<think>a</think>B</think>C", "C"),
        ("a</think>b<think>c</think>D", "bD"),
        ("<think>\na\n\nb</think>\n\n B", "B"),
        ("", ""),
    ],
)
def test_thinking_is_stripped_by_the_two_rules_of_the_paper(text, expected):
    assert Thinking().answer(text).text == expected


def test_a_text_after_an_opened_thinking_without_an_end_is_all_thinking():
    thinking = Thinking.of(golden_tokenizer("deepseek_r1_distill_qwen"))
    opened = encode_chat(golden_tokenizer("deepseek_r1_distill_qwen"), chat("1+1?", None), None)
    assert thinking.answer("cut off while thinking", prompt_ids=opened) == Answer("cut off while thinking", False, True)
    assert thinking.answer("a</think>B", prompt_ids=opened) == Answer("B", True, False)
    assert thinking.answer("cut off", prompt_ids=opened[:-2]) == Answer("cut off", False, False)


@pytest.mark.parametrize("mark", KNOWN_MARKS, ids=lambda mark: mark.opening)
@pytest.mark.parametrize("is_special", [True, False])
def test_published_marks_are_found_and_removed_also_where_they_are_special_tokens(mark, is_special):
    """Decoding drops special tokens: the whole thinking would pass for the answer, and leak without a trace."""
    tags = tuple(
        tag
        for text in (mark.opening, mark.closing)
        for tag in (text.replace("analysis", " ").replace("final", " ").replace("assistant", " ").split())
    )
    made = tokenizer(special=tags if is_special else (), ordinary=() if is_special else tags)
    made.chat_template = "{# " + mark.opening + " #}" + made.chat_template
    ids = ids_of(made, f"{mark.opening}Wait, maybe 3?{mark.closing}\n\nSo \\boxed{{2}}")
    text = decoded(made, ids)
    assert "Wait" in text
    thinking = Thinking.of(made)
    assert thinking.answer(text, ids) == Answer("So \\boxed{2}", True, False)
    unfinished = ids_of(made, f"{mark.opening}Wait, maybe 3?")
    assert thinking.answer(decoded(made, unfinished), unfinished).has_leaked


def test_marks_of_the_entry_take_the_place_of_those_that_would_be_found():
    marks = [ThinkingMarks(opening="((", closing="))")]
    made = tokenizer()
    assert Thinking.of(made).answer("((a)) B") == Answer("((a)) B", False, False)
    assert Thinking.of(made, marks).answer("((a)) B") == Answer("B", True, False)
    assert Thinking.of(made, marks).answer("<think>a</think>B").text == "<think>a</think>B"


def test_a_text_of_other_markup_is_left_alone():
    """`<reasoning>` counts only for a model whose template or vocabulary has it."""
    assert Thinking.of(tokenizer()).answer("<reasoning>a</reasoning>B") == Answer(
        "<reasoning>a</reasoning>B", False, False
    )


def sdpo(made, **settings) -> SdpoMethod:
    method = Sdpo(context="solution_no_think", reprompt=REPROMPT, **settings)
    return SdpoMethod(method, Policy(made, None, max_completion_tokens=100))


def shown(method: SdpoMethod, rollouts: list[Rollout]) -> RowPlan:
    return method.plan_step([rollouts])[0][0]


def group(made, texts: list[str]) -> list[Rollout]:
    messages = chat("1+1?", None)
    prompt = Prompt(0, "p", "", "", "2", messages, encode_chat(made, messages, None))
    tokens = [ids_of(made, text) for text in texts]
    return [
        Rollout(prompt, k, Completion(ids, [0.0] * len(ids), "eos"), decoded(made, ids), "correct", 1.0, "2")
        for k, ids in enumerate(tokens)
    ]


def test_a_teacher_is_not_shown_thinking_between_special_tokens():
    made = tokenizer(special=("[THINK]", "[/THINK]"))
    plans = sdpo(made).plan_step([group(made, ["[THINK]Wait, 3?[/THINK] So \\boxed{2}"] * 2)])[0]
    seen = made.decode(plans[0].teachers[CONTEXT].ids)
    assert "[So \\boxed{2}]" in seen and "Wait" not in seen
    assert (plans[0].teachers[CONTEXT].is_stripped, plans[0].teachers[CONTEXT].has_leaked_thinking) == (True, False)


def test_white_space_around_a_demonstration_is_kept_where_the_recipe_says_so():
    made = tokenizer()
    completions = group(made, ["<think>a</think>B\n "] * 2)
    assert "[B]" in made.decode(shown(sdpo(made), completions).teachers[CONTEXT].ids)
    assert "[B\n ]" in made.decode(shown(sdpo(made, keep_space=True), completions).teachers[CONTEXT].ids)
    blank = group(made, ["<think>a</think> \n"] * 2)
    assert not shown(sdpo(made, keep_space=True), blank).is_supervised


def test_the_share_of_demonstrations_that_lost_their_thinking_is_shown():
    made = tokenizer(special=("[THINK]", "[/THINK]"))
    plans = sdpo(made).plan_step(
        [group(made, ["[THINK]Wait[/THINK] So \\boxed{2}"] * 2), group(made, ["So \\boxed{2}"] * 2)]
    )
    assert teacher_metrics(plans)["stripped_share"] == 0.5


def test_a_step_in_which_no_thinking_was_removed_is_an_error():
    kept, stripped, whole = (
        RowPlan(teachers={CONTEXT: TeacherPrompt([1], is_stripped=is_stripped)}) for is_stripped in (False, True, None)
    )
    guards.check_stripped(3, [[kept, stripped], [kept]])
    guards.check_stripped(3, [[whole, whole]])
    with pytest.raises(UserError, match=r"step 3: .*not one of 2 demonstrations had thinking.*thinking_marks"):
        guards.check_stripped(3, [[kept, whole], [kept]])


def test_a_context_without_thinking_is_made_from_the_tokens():
    made = tokenizer(special=("[THINK]", "[/THINK]"))
    ids = ids_of(made, "[THINK]Wait, 3?[/THINK] So \\boxed{2}")
    attempt = Attempt(0, 0, decoded(made, ids), 1.0, "correct", "eos", completion_ids=ids)
    problem = ProblemAttempts("p", "1+1?", "2", (attempt,))
    found = build_context("solution_no_think", problem, thinking=Thinking.of(made))
    assert found.context == "So \\boxed{2}"
    assert found.answer == Answer(found.context, True, False)
    assert "Wait" in build_context("solution", problem).context
