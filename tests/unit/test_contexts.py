"""Teacher contexts: which text is shown, and that only the demonstration is ever cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.contexts import (
    NO_SOURCE,
    Attempt,
    Context,
    ProblemAttempts,
    assign_donors,
    build_context,
    build_contexts,
    choose_demonstrations,
    encode_context,
    encode_teacher_prompt,
    feedback_text,
    reprompt_text,
)
from selfdistill.prompts import chat, encode_chat
from selfdistill.schema.common import RepromptTemplate
from selfdistill.schema.errors import UserError
from small_tokenizer import byte_tokenizer, word_tokenizer

PAPER = RepromptTemplate(
    frame="{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
    solution="\nCorrect solution:\n\n{successful_previous_attempt}",
    feedback="\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}",
)
WORDS = RepromptTemplate(
    frame="{prompt} {solution} now solve", solution="correct solution {successful_previous_attempt}"
)
BYTES = byte_tokenizer()
WHOLE_WORDS = word_tokenizer()


def attempt(sample, reward, completion="", outcome=None, stop_reason="eos"):
    return Attempt(3, sample, completion, reward, outcome or ("correct" if reward else "wrong"), stop_reason)


def problem(name, *attempts, guided=(), answer="7"):
    return ProblemAttempts(name, f"Question {name}?", answer, tuple(attempts), tuple(guided))


SOLVED = problem(
    "p1",
    attempt(0, 0.0, "no \\boxed{1}"),
    attempt(1, 1.0, "<think>maybe</think>\n\nSo \\boxed{7}"),
    attempt(2, 1.0, "later"),
)
UNSOLVED = problem("p2", attempt(0, 0.0, "x", "unparsed"), attempt(1, 0.0, "y"))


# --- choosing a demonstration inside a group -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "exclude_own", "expected"),
    [
        ([0, 1, 0, 1], True, [1, 3, 1, 1]),
        ([0, 1, 0, 1], False, [1, 1, 1, 1]),
        ([0, 1, 0], True, [1, None, 1]),
        ([0, 1, 0], False, [1, 1, 1]),
        ([0, 0], True, [None, None]),
        ([1, 1, 1], True, [1, 0, 0]),
        ([], True, []),
    ],
)
def test_the_first_success_is_shown_and_its_author_gets_the_next(rewards, exclude_own, expected):
    assert choose_demonstrations(rewards, 0.5, exclude_own) == expected


def test_a_reward_at_the_threshold_is_a_success():
    assert choose_demonstrations([0.5, 0.49], 0.5, True) == [None, 0]


@given(st.lists(st.sampled_from([0.0, 1.0]), max_size=8))
def test_nobody_is_shown_its_own_or_a_failed_completion(rewards):
    for index, chosen in enumerate(choose_demonstrations(rewards, 0.5, True)):
        others = [j for j, reward in enumerate(rewards) if reward and j != index]
        assert chosen == (min(others) if others else None)


# --- the eight kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "source"),
    [
        ("none", "", (NO_SOURCE, NO_SOURCE)),
        ("solution", "<think>maybe</think>\n\nSo \\boxed{7}", (3, 1)),
        ("solution_no_think", "So \\boxed{7}", (3, 1)),
        ("answer", "\\boxed{ 7 }", (NO_SOURCE, NO_SOURCE)),
        ("feedback", "Your final answer is wrong.", (3, 0)),
    ],
)
def test_each_kind_has_its_text_and_source(kind, text, source):
    assert build_context(kind, SOLVED) == Context("p1", kind, text, *source)


def test_regenerated_takes_the_first_correct_guided_completion_else_the_first():
    guided = [attempt(0, 0.0, "g0"), attempt(1, 1.0, "g1"), attempt(2, 1.0, "g2")]
    assert build_context("regenerated", problem("p", guided=guided)) == Context("p", "regenerated", "g1", 3, 1)
    assert build_context("regenerated", problem("p", guided=guided[:1])) == Context("p", "regenerated", "g0", 3, 0)
    assert build_context("regenerated", SOLVED) == "no_guided_completion"


def test_concise_is_an_instruction_and_no_solution():
    assert build_context("concise", UNSOLVED, instruction="Be brief.") == Context("p2", "concise", "Be brief.")
    with pytest.raises(UserError, match="contexts.instruction"):
        build_context("concise", UNSOLVED)


@pytest.mark.parametrize(
    ("kind", "given_problem", "reason"),
    [
        ("solution", UNSOLVED, "no_correct_completion"),
        ("solution_no_think", problem("p", attempt(0, 1.0, "<think>x</think>")), "nothing_after_stripping"),
        ("feedback", problem("p", attempt(0, 1.0, "x")), "no_failed_completion"),
        ("donor", SOLVED, "no_correct_completion"),
    ],
)
def test_a_missing_context_has_a_reason(kind, given_problem, reason):
    assert build_context(kind, given_problem) == reason


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        (attempt(0, 0.0, outcome="unparsed"), "No readable final answer"),
        (attempt(0, 0.0, outcome="wrong", stop_reason="length"), "length limit"),
        (attempt(0, 0.0, outcome="timeout"), "could not be checked"),
        (attempt(0, 0.0, outcome="wrong"), "is wrong"),
    ],
)
def test_feedback_says_what_went_wrong_and_not_the_answer(failed, words):
    context = build_context("feedback", problem("p", failed, answer="4242"))
    assert words in context.context
    assert "4242" not in context.context


def test_feedback_of_the_grader_itself_comes_first():
    told = replace(attempt(0, 0.0, stop_reason="length"), feedback="Test 1 of 2: wrong output.")
    assert build_context("feedback", problem("p", told)).context == "Test 1 of 2: wrong output."


def test_a_correct_attempt_has_no_feedback():
    with pytest.raises(ValueError, match="no feedback"):
        feedback_text(attempt(0, 1.0))


@given(st.integers(2, 30), st.integers(0, 5))
def test_donors_are_a_derangement_that_ignores_the_order_of_problems(size, seed):
    names = [f"p{i}" for i in range(size)]
    donors = assign_donors(names, seed)
    assert donors == assign_donors(names[::-1], seed)
    assert set(donors) == set(donors.values()) == set(names)
    assert all(receiver != giver for receiver, giver in donors.items())


def test_donors_depend_on_the_seed_and_need_two_problems():
    names = [f"p{i}" for i in range(20)]
    assert assign_donors(names, 0) != assign_donors(names, 1)
    with pytest.raises(UserError, match="two problems"):
        assign_donors(["p"], 0)
    with pytest.raises(ValueError, match="distinct"):
        assign_donors(["p", "p"], 0)


def test_a_donor_context_holds_the_other_question_and_its_solution():
    problems = [SOLVED, UNSOLVED, problem("p3", attempt(0, 1.0, "other \\boxed{9}"))]
    contexts, missing = build_contexts("donor", problems, seed=1)
    assert missing == {"no_correct_completion": 1}
    assert contexts[0] == Context("p1", "donor", "Question p3?\n\nother \\boxed{9}", 3, 0)
    assert contexts[1].problem_id == "p3"
    assert contexts[1].context.startswith("Question p1?")


def test_a_problem_is_never_its_own_donor():
    with pytest.raises(ValueError, match="own donor"):
        build_context("donor", SOLVED, donor=SOLVED)


def test_problems_without_a_context_are_counted_and_all_missing_is_an_error():
    contexts, missing = build_contexts("solution", [SOLVED, UNSOLVED])
    assert [context.problem_id for context in contexts] == ["p1"]
    assert missing == {"no_correct_completion": 1}
    with pytest.raises(UserError, match="fits none of 1"):
        build_contexts("solution", [UNSOLVED])


# --- wording ---------------------------------------------------------------------------------------------------------


def test_the_training_reprompt_is_the_papers_to_the_letter():
    assert reprompt_text(PAPER, "Q {x}", "D {solution}", None) == (
        "Q {x}\nCorrect solution:\n\nD {solution}\n\nCorrectly solve the original question."
    )
    assert reprompt_text(PAPER, "Q", None, "F") == (
        "Q\nThe following is feedback from your unsuccessful earlier attempt:\n\nF"
        "\n\nCorrectly solve the original question."
    )


def test_without_solution_and_feedback_the_prompt_is_unchanged():
    assert reprompt_text(PAPER, "Q", None, None) == "Q"


def test_feedback_without_a_place_in_the_template_is_refused():
    with pytest.raises(UserError, match="no place for feedback"):
        reprompt_text(WORDS, "Q", "D", "F")


# --- token ids and cutting -------------------------------------------------------------------------------------------


def test_a_fitting_prompt_is_the_encoded_reprompt():
    messages = chat("Q?", "Be kind.")
    ids, is_truncated = encode_teacher_prompt(BYTES, messages, PAPER, "D", False, 1000)
    expected = chat(reprompt_text(PAPER, "Q?", "D", None), "Be kind.")
    assert (ids, is_truncated) == (encode_chat(BYTES, expected, False), False)
    assert messages == chat("Q?", "Be kind.")


def test_a_long_demonstration_is_cut_to_the_exact_limit():
    full, _ = encode_teacher_prompt(WHOLE_WORDS, chat("which", None), WORDS, "a b c a b c", None, 1000)
    for limit in range(len(full) - 6, len(full)):
        ids, is_truncated = encode_teacher_prompt(WHOLE_WORDS, chat("which", None), WORDS, "a b c a b c", None, limit)
        assert is_truncated
        assert len(ids) == limit
    text = WHOLE_WORDS.decode(encode_teacher_prompt(WHOLE_WORDS, chat("which", None), WORDS, "a b c", None, limit)[0])
    assert text.endswith("now solve <|im_end|> <|im_start|> assistant")


@settings(max_examples=60, deadline=None)
@given(
    demonstration=st.text(alphabet="solve the question 0123456789é漢🙂{}\n", min_size=1, max_size=300),
    share=st.floats(0, 1),
    thinking=st.sampled_from([None, False]),
)
def test_question_instruction_and_header_survive_any_cut(demonstration, share, thinking):
    messages = chat("Which {x}?\nPut it within \\boxed{}.", "Be kind.")
    empty, _ = encode_teacher_prompt(BYTES, messages, PAPER, "", thinking, 10_000)
    full, _ = encode_teacher_prompt(BYTES, messages, PAPER, demonstration, thinking, 10_000)
    limit = len(empty) + int(share * (len(full) - len(empty)))
    ids, is_truncated = encode_teacher_prompt(BYTES, messages, PAPER, demonstration, thinking, limit)
    assert is_truncated == (len(full) > limit)
    assert len(ids) <= limit
    head, tail = BYTES.decode(empty).split("Correct solution:\n\n")
    text = BYTES.decode(ids)
    assert text.startswith(head + "Correct solution:\n\n")
    assert text.endswith(tail)
    shown = text[len(head + "Correct solution:\n\n") : len(text) - len(tail)]
    assert demonstration.startswith(shown)
    if is_truncated:
        # No whole token of the demonstration more would have fitted: four bytes are the longest character.
        longer, _ = encode_teacher_prompt(BYTES, messages, PAPER, demonstration[: len(shown) + 12], thinking, 10_000)
        assert len(longer) > limit or len(shown) + 12 >= len(demonstration)


def test_a_tokenizer_without_offsets_is_cut_between_characters():
    class Slow:
        is_fast = False
        chat_template = BYTES.chat_template
        name_or_path = "slow"
        apply_chat_template = staticmethod(BYTES.apply_chat_template)

    ids, is_truncated = encode_teacher_prompt(Slow(), chat("Q?", None), PAPER, "0123456789" * 20, None, 120)
    assert is_truncated
    assert len(ids) == 120


@pytest.mark.parametrize(("solution", "feedback"), [("a b c", None), ("", None), (None, "F"), (None, None)])
def test_a_limit_below_the_bare_prompt_is_a_users_mistake(solution, feedback):
    with pytest.raises(UserError, match="max_reprompt_tokens: 5 is too small"):
        encode_teacher_prompt(BYTES, chat("Which of these?", None), PAPER, solution, None, 5, feedback)


@pytest.mark.parametrize(
    ("kind", "context", "content"),
    [
        ("none", "", "Q?"),
        ("concise", "Be brief.", "Q?\nBe brief."),
        ("feedback", "F", reprompt_text(PAPER, "Q?", None, "F")),
        ("solution", "D", reprompt_text(PAPER, "Q?", "D", None)),
        ("donor", "D", reprompt_text(PAPER, "Q?", "D", None)),
    ],
)
def test_each_kind_of_context_is_shown_in_its_way(kind, context, content):
    ids, is_truncated = encode_context(BYTES, chat("Q?", "S"), kind, context, PAPER, None, 1000)
    assert ids == encode_chat(BYTES, chat(content, "S"), None)
    assert not is_truncated
