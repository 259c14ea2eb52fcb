"""Teacher contexts of a training step: what each kind shows to whom, and rows of which only some have one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from chat_tokenizers import tokenizer
from selfdistill.artifacts.tables import prompt_columns, write_rows
from selfdistill.generation.base import Completion
from selfdistill.losses import divergence
from selfdistill.prompts import encode_chat
from selfdistill.rollouts import Prompt, Rollout
from selfdistill.schema.common import Optimiser, RepromptTemplate
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Sdpo
from selfdistill.stages.shared.generate import read_prompts
from selfdistill.stages.train import training_prompts
from selfdistill.training.data import CONTEXT, PLAIN, Row, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World
from selfdistill.training.methods import Tokens, make_method
from selfdistill.training.methods.base import Policy
from selfdistill.training.methods.teacher_prompts import TeacherPrompts
from selfdistill.training.network import Network
from selfdistill.training.teacher import ShownLogits, TeacherNetwork
from selfdistill.training.update import Updater
from tiny import tiny_model
from training_session import SDPO, TOKENIZER, Session, make_prompts, make_spec

TEMPLATE = RepromptTemplate(
    frame="{prompt}{solution}{feedback} solve",
    solution=" solution {successful_previous_attempt}",
    feedback=" check {feedback_raw}",
)


def group(place: int, *rewards: float) -> list[Rollout]:
    """Completions `maybe <sample>` of the problem at that place; its question is `which <place>`."""
    prompt = make_prompts(6)[place]
    return [
        Rollout(
            prompt, sample, Completion([7], [0.0], "eos"), f"<think> wait </think> maybe {sample}",
            "correct" if reward else "wrong", reward, "",
        )
        for sample, reward in enumerate(rewards)
    ]  # fmt: skip


def shown(context: str, *groups, **settings) -> list[str | None]:
    """What the teacher of each rollout reads between `user` and the end of its turn."""
    method = Sdpo(context=context, reprompt=TEMPLATE, **settings)
    plans = [plan for row in make_method(make_spec(method), TOKENIZER, 256).plan_step(groups) for plan in row]
    assert all(plan.is_supervised == plan.has_gradient == (CONTEXT in plan.teachers) for plan in plans)
    texts = [TOKENIZER.decode(plan.teachers[CONTEXT].ids) if plan.teachers else None for plan in plans]
    return [text and text.split(" user ")[1].split(" <|im_end|>")[0] for text in texts]


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("none", ["which 0", "which 0", "which 0"]),
        ("solution", ["which 0 solution <think> wait </think> maybe 1 solve", None,
                      "which 0 solution <think> wait </think> maybe 1 solve"]),
        ("solution_no_think", ["which 0 solution maybe 1 solve", None, "which 0 solution maybe 1 solve"]),
        ("answer", ["which 0 solution \\boxed{ 0 } solve"] * 3),
        ("wrong", ["which 0 solution <think> wait </think> maybe 2 solve",
                   "which 0 solution <think> wait </think> maybe 0 solve",
                   "which 0 solution <think> wait </think> maybe 0 solve"]),
        ("reference_only", ["solution <think> wait </think> maybe 1 solve", None,
                            "solution <think> wait </think> maybe 1 solve"]),
    ],
)  # fmt: skip
def test_each_context_shows_what_its_name_says(context, expected):
    assert shown(context, group(0, 0, 1, 0)) == expected


def test_a_reference_solution_is_that_of_the_data_set_where_there_is_one():
    given, without = (
        [replace(r, prompt=replace(r.prompt, solution=text)) for r in group(place, 1, 0)]
        for place, text in ((0, "so 0"), (1, None))
    )
    assert shown("reference", given, without) == ["which 0 solution so 0 solve"] * 2 + [None] * 2


def test_a_solution_of_the_data_set_reaches_the_prompts_of_training(tmp_path):
    made = [{"row_id": 0, "problem_id": "p", "family": "", "question": "q", "answer": "0", "messages": "[]",
             "prompt_ids": [1]}]  # fmt: skip
    artifact = SimpleNamespace(input=lambda role: SimpleNamespace(payload=tmp_path))
    for solution in (None, "so 0"):
        rows = [row | {"solution": solution} for row in made]
        write_rows(tmp_path / "prompts.parquet", rows, prompt_columns(rows))
        assert ("solution" in pq.read_schema(tmp_path / "prompts.parquet").names) == (solution is not None)
        assert [prompt.solution for prompt in read_prompts(artifact)] == [solution]
        spec = make_spec(Sdpo(context="reference", reprompt=TEMPLATE))
        if solution is None:
            with pytest.raises(UserError, match="none of the problems has a solution"):
                training_prompts(SimpleNamespace(artifact=artifact), spec)
        else:
            assert training_prompts(SimpleNamespace(artifact=artifact), spec)[0].answer == "0"


def test_feedback_tells_wrong_completions_what_was_wrong_and_right_ones_nothing():
    wrong, right = shown("feedback", group(0, 0, 1))
    assert wrong.startswith("which 0 check <unk>") and wrong.endswith("solve") and right is None


def test_an_instruction_is_a_last_line_without_a_solution():
    assert shown("concise", group(0, 0, 1), instruction="so so") == ["which 0 so so"] * 2
    with pytest.raises(ValidationError, match="`instruction` is needed by context `concise`"):
        Sdpo(context="concise", reprompt=TEMPLATE)
    with pytest.raises(ValidationError, match="and by no other"):
        Sdpo(instruction="so", reprompt=TEMPLATE)


def test_a_donor_is_the_next_other_problem_of_the_step_that_was_solved():
    first, unsolved, again, last = group(0, 0, 1), group(3, 0, 0), group(0, 1, 1), group(2, 0, 1)
    texts = shown("donor", first, unsolved, again, last)
    third, zeroth = "solution which 2 so so", "solution which 0"
    told = " <think> wait </think> maybe 1 solve"
    assert texts[:2] == [f"which 0 {third}{told}"] * 2  # Not the same problem again, and not the unsolved one.
    assert texts[2:4] == [f"which 3 {zeroth} <think> wait </think> maybe 0 solve"] * 2
    assert texts[4:6] == [f"which 0 {third}{told}"] * 2
    assert texts[6:] == [f"which 2 so so {zeroth}{told}"] * 2
    assert shown("donor", first, unsolved) == [None, None, *[f"which 3 {zeroth}{told}"] * 2]


def test_wrong_siblings_are_never_the_completion_itself():
    method = make_method(make_spec(Sdpo(reprompt=TEMPLATE)), TOKENIZER, 256)
    found = method.prompts.wrong_siblings(group(0, 0, 1, 0, 0), 2)
    numbers = [[TOKENIZER.decode(p.ids).split("maybe ")[1][0] if p else None for p in prompts] for prompts in found]
    assert numbers == [["2", "3"], ["0", "2"], ["0", "3"], ["0", "2"]]
    assert method.prompts.wrong_siblings(group(0, 0, 1), 2)[0] == [None, None]


def rows_of_which_some_have_a_teacher() -> list[Row]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index in range(8):
        prompt, completion = (
            torch.randint(5, len(TOKENIZER), (size,), generator=generator).tolist() for size in (3 + index, 2 + index)
        )
        teachers = {CONTEXT: TeacherPrompt([*prompt, 8, 9])} if index % 3 else {}
        rows.append(Row(prompt, completion, RowPlan(teachers=teachers), [-3.0] * len(completion)))
    return rows


def update(rows: list[Row], budget: int, chunk: int):
    student = Network(tiny_model(len(TOKENIZER)))
    student.chunk_tokens = lambda: chunk
    method = make_method(make_spec(SDPO), TOKENIZER, 256)
    updater = Updater(
        method, student, TeacherNetwork(method.teacher, student), torch.optim.SGD(student.model.parameters(), lr=0.0),
        Optimiser(learning_rate=1.0, max_grad_norm=1e9), World("cpu"), budget, 2.0,
        torch.arange(len(TOKENIZER)) % 5 == 0,
    )  # fmt: skip
    return updater.run([rows], 1, lambda *_: None), [p.grad for p in student.model.parameters()]


@pytest.mark.parametrize(("budget", "chunk"), [(100_000, 1000), (100_000, 7), (60, 1000), (1, 3)])
def test_rows_without_a_teacher_may_share_a_micro_batch_with_others(budget, chunk):
    """They have no loss, no gradient and no part in the gap to the teacher, as if they were masked."""
    rows = rows_of_which_some_have_a_teacher()
    masked = [
        row if row.plan.teachers else Row(row.prompt_ids, row.completion_ids, RowPlan(True, False), [0.0])
        for row in rows
    ]
    expected, wanted = update(masked, 1, 1000)
    found, gradients = update(rows, budget, chunk)
    for name in ("loss", "grad_norm", "teacher_gap_epistemic", "teacher_gap_other"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-7)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_tokens_are_compared_with_all_teachers_of_their_row_or_with_none():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(4, 6, generator=generator).requires_grad_() for _ in range(2))
    targets = torch.tensor([0, 1, 2, 3])
    logprobs = logits.log_softmax(-1)[range(4), targets]
    mask = torch.tensor([True, False, True, True])

    def tokens(**teachers):
        return Tokens(logits, targets, logprobs, logprobs.detach(), torch.ones(4), teachers)

    def loss(part, *others):
        return divergence(part.student_logits, others[0], alpha=0.5, top_k=None, add_tail=True)

    part = ShownLogits(teacher[mask], mask)
    found = tokens(context=part, plain=part).distil([CONTEXT, PLAIN], loss)
    assert found[1] == 0 and torch.equal(found[mask], loss(tokens().select(mask), teacher[mask]))
    nothing = tokens().distil([CONTEXT], loss)
    assert not nothing.any() and nothing.requires_grad
    with pytest.raises(ValueError, match="some of the contexts context, plain but not all"):
        tokens(context=part).distil([CONTEXT, PLAIN], loss)


@pytest.mark.parametrize("context", ["none", "solution"])
def test_the_teacher_may_think_where_the_student_does_not(context):
    """Qwen3's template closes the thinking of a completion that must not think; the teacher's prompt is left open."""
    words = tokenizer("qwen3")
    messages = [{"role": "user", "content": "What is 1?"}]
    prompt = Prompt(0, "p", "", "", "1", messages, encode_chat(words, messages, False))
    rollouts = [Rollout(prompt, i, Completion([7], [0.0], "eos"), f"one {i}", "correct", 1.0, "") for i in range(2)]
    policy = Policy(words, False, 32, 512)
    as_student, thinking = (
        words.decode(TeacherPrompts(settings, policy).of(context, [rollouts])[0].ids)
        for settings in (Sdpo(context=context, reprompt=TEMPLATE, teacher_thinking=own) for own in (None, True))
    )
    assert as_student == thinking + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("context", ["none", "wrong", "donor", "answer", "reference_only"])
def test_a_run_with_a_control_as_context(tmp_path, context):
    session = Session(tmp_path, make_spec(Sdpo(context=context, top_k=10, reprompt=TEMPLATE), steps=2))
    session.run()
    lines = session.metrics()
    assert all(line["demonstration_share"] > 0 and line["supervised_tokens"] for line in lines)
    if context == "none":
        assert abs(lines[0]["loss"]) < 1e-6
    else:
        assert lines[0]["loss"] > 1e-4
