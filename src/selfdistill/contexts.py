"""Teacher contexts: whose solution a teacher is shown, in which words, and as which token ids.

On-policy (docs/method.md 3): `choose_demonstrations` picks, inside one group of completions, the demonstration of each.
Off-policy (docs/method.md 8.1): `build_contexts` picks one text per problem from graded
completions. A problem without a text for its kind is counted under a reason, never given another kind's text.
`encode_teacher_prompt` and `encode_context` turn a text into the teacher's prompt (docs/method.md 8.2).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from selfdistill.prompts import Message, encode_chat, fill
from selfdistill.schema.common import RepromptTemplate
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import ContextKind
from selfdistill.thinking import Answer, Thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Reward from which a completion is correct (docs/method.md 3).
SUCCESS_THRESHOLD = 0.5
#: Source of a context that stems from no completion.
NO_SOURCE = -1
#: The `answer` context. LaTeX ignores the spaces; tokenizers that split at spaces need them.
ANSWER_TEMPLATE = "\\boxed{ {answer} }"

Missing = Literal["no_correct_completion", "no_guided_completion", "no_failed_completion", "nothing_after_stripping"]


@dataclass(frozen=True)
class Attempt:
    """One graded completion; `feedback` is what its grader said of it, if it says anything.

    The tokens of prompt and completion show thinking that the decoded text does not (`Thinking.answer`).
    """

    row_id: int
    sample: int
    completion: str
    reward: float
    outcome: str
    stop_reason: str
    feedback: str = ""
    prompt_ids: Sequence[int] = ()
    completion_ids: Sequence[int] = ()


@dataclass(frozen=True)
class ProblemAttempts:
    """A problem with its completions, in sample order; `guided` were sampled with a solution in the prompt."""

    problem_id: str
    question: str
    answer: str
    attempts: tuple[Attempt, ...]
    guided: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class Context:
    """A row of contexts.parquet; `source_row_id` and `source_sample` are NO_SOURCE where no completion is behind it.

    `answer` is how a text without thinking was made; it is counted, not stored.
    """

    problem_id: str
    kind: ContextKind
    context: str
    source_row_id: int = NO_SOURCE
    source_sample: int = NO_SOURCE
    answer: Answer | None = field(default=None, compare=False)


def choose_demonstrations(rewards: Sequence[float], threshold: float, exclude_own: bool) -> list[int | None]:
    """Index of the demonstration of each completion of one group, None where there is none (docs/method.md 3).

    It is the first completion whose reward reaches the threshold; with `exclude_own` its author gets the second.
    """
    successes = [index for index, reward in enumerate(rewards) if reward >= threshold]
    return [
        next((success for success in successes if not (exclude_own and success == index)), None)
        for index in range(len(rewards))
    ]


def feedback_text(attempt: Attempt) -> str:
    """What went wrong with a failed attempt, without the right answer. Raises ValueError for a correct one."""
    if attempt.outcome == "correct":
        raise ValueError("a correct attempt has no feedback")
    if attempt.stop_reason == "length" and not attempt.feedback:
        return (
            "Your attempt reached the length limit before it ended. Be shorter, and finish with \\boxed{your answer}."
        )
    reasons = {
        "unparsed": "No readable final answer was found. Finish with \\boxed{your answer}.",
        "timeout": "Your final answer could not be checked in time. Simplify it before you put it in \\boxed{}.",
        "wrong": "Your final answer is wrong.",
        "unreadable_gold": "Your final answer could not be compared with the expected one.",
    }
    return attempt.feedback or reasons[attempt.outcome]


def assign_donors(problem_ids: Sequence[str], seed: int) -> dict[str, str]:
    """Another problem for each problem: one cycle through all of them, in an order fixed by the seed.

    The order of `problem_ids` does not matter. Raises UserError for fewer than two problems, ValueError for repeats.
    """
    if len(set(problem_ids)) < len(problem_ids):
        raise ValueError("problem_ids must be distinct")
    if len(problem_ids) < 2:
        raise UserError(
            f"contexts.kind: `donor` needs two problems with a correct completion, there are {len(problem_ids)}; "
            "use more problems or more samples."
        )
    cycle = sorted(problem_ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def build_context(
    kind: ContextKind,
    problem: ProblemAttempts,
    *,
    instruction: str | None = None,
    donor: ProblemAttempts | None = None,
    threshold: float = SUCCESS_THRESHOLD,
    thinking: Thinking | None = None,
) -> Context | Missing:
    """The context of one problem, or the reason why there is none (a string).

    `thinking` are the model's marks, by default the paper's. `concise` needs `instruction` (UserError without), `donor`
    needs the other problem. `regenerated` takes the first correct of the guided completions, else the first of them;
    `solution` and `solution_no_think` the first correct one.
    """
    if kind == "none":
        return Context(problem.problem_id, kind, "")
    if kind == "answer":
        return Context(problem.problem_id, kind, fill(ANSWER_TEMPLATE, {"answer": problem.answer}))
    if kind == "concise":
        if not instruction:
            raise UserError("contexts.instruction is missing: kind `concise` shows this text, e.g. `Be brief.`")
        return Context(problem.problem_id, kind, instruction)
    if kind == "donor":
        return _donor_context(problem, donor, threshold)
    source = _source(kind, problem, threshold)
    if not isinstance(source, Attempt):
        return source
    if kind == "feedback":
        return Context(problem.problem_id, kind, feedback_text(source), source.row_id, source.sample)
    if kind != "solution_no_think":
        return Context(problem.problem_id, kind, source.completion, source.row_id, source.sample)
    answer = (thinking or Thinking()).answer(source.completion, source.completion_ids, source.prompt_ids)
    if not answer.text.strip():
        return "nothing_after_stripping"  # Never the full text instead.
    return Context(problem.problem_id, kind, answer.text.strip(), source.row_id, source.sample, answer)


def build_contexts(
    kind: ContextKind,
    problems: Sequence[ProblemAttempts],
    *,
    instruction: str | None = None,
    seed: int = 0,
    threshold: float = SUCCESS_THRESHOLD,
    thinking: Thinking | None = None,
) -> tuple[list[Context], Counter[str]]:
    """Contexts of all problems that have one, in their order, and the number of the others by reason.

    `donor` is drawn among the problems with a correct completion, so that it covers the problems of `solution`.
    Raises UserError where not one problem has a context.
    """
    donors: dict[str, ProblemAttempts] = {}
    if kind == "donor":
        solved = {p.problem_id: p for p in problems if _first_correct(p.attempts, threshold)}
        donors = {receiver: solved[giver] for receiver, giver in assign_donors(list(solved), seed).items()}
    results = [
        build_context(
            kind,
            p,
            instruction=instruction,
            donor=donors.get(p.problem_id),
            threshold=threshold,
            thinking=thinking,
        )
        for p in problems
    ]
    contexts = [result for result in results if isinstance(result, Context)]
    missing = Counter(result for result in results if isinstance(result, str))
    if not contexts:
        raise UserError(f"contexts.kind: `{kind}` fits none of {len(problems)} problems: {dict(missing)}")
    return contexts, missing


def reprompt_text(template: RepromptTemplate, prompt: str, solution: str | None, feedback: str | None) -> str:
    """The teacher's user message (docs/method.md 8.2); absent sections are empty; without both it is the prompt itself.

    Raises UserError for feedback that the template has no place for: it would vanish without a word.
    """
    if solution is None and feedback is None:
        return prompt
    if feedback is not None and not ("{feedback}" in template.frame and "{feedback_raw}" in template.feedback):
        raise UserError(
            "the re-prompt template has no place for feedback: put {feedback} into `frame` and {feedback_raw} into "
            "`feedback`."
        )
    sections = {"prompt": prompt, "solution": "", "feedback": ""}
    if solution is not None:
        sections["solution"] = fill(template.solution, {"successful_previous_attempt": solution})
    if feedback is not None:
        sections["feedback"] = fill(template.feedback, {"feedback_raw": feedback})
    return fill(template.frame, sections)


def encode_teacher_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template: RepromptTemplate,
    solution: str | None,
    thinking: bool | None,
    max_tokens: int,
    feedback: str | None = None,
) -> tuple[list[int], bool]:
    """Token ids of the teacher's prompt, and whether its demonstration was cut to fit `max_tokens`.

    The last message is replaced by the re-prompt, earlier ones stay. Only the end of the demonstration is ever cut,
    between its own tokens: cutting the whole prompt, as in the paper's code, takes the closing instruction and the
    generation header first (docs/method.md 8.4). Raises UserError where the rest alone is too long.
    """

    def encode(demonstration: str | None) -> list[int]:
        text = reprompt_text(template, messages[-1]["content"], demonstration, feedback)
        return encode_chat(tokenizer, [*messages[:-1], {**messages[-1], "content": text}], thinking)

    ids = encode(solution)
    if len(ids) <= max_tokens:
        return ids, False
    text = solution or ""
    cuts = _cut_positions(tokenizer, text)
    kept = len(cuts) - 1
    while len(ids) > max_tokens:
        if kept == 0:
            raise UserError(
                f"max_reprompt_tokens: {max_tokens} is too small: this teacher prompt needs {len(ids)} tokens without "
                "any demonstration; raise it, or lower max_prompt_tokens."
            )
        kept = max(0, kept - (len(ids) - max_tokens))
        ids = encode(text[: cuts[kept]])
    # Tokens that merge at the cut can leave room for a little more.
    while kept + 1 < len(cuts) and len(longer := encode(text[: cuts[kept + 1]])) <= max_tokens:
        ids, kept = longer, kept + 1
    return ids, True


def encode_context(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    kind: ContextKind,
    context: str,
    template: RepromptTemplate,
    thinking: bool | None,
    max_tokens: int,
) -> tuple[list[int], bool]:
    """Token ids of a prompt that shows a row of contexts.parquet in the way of its kind; errors as above.

    `none` is the prompt itself, `concise` adds its instruction as a last line, `feedback` fills the feedback section,
    and all others fill the solution section.
    """
    solution, feedback = None, None
    if kind == "concise":
        messages = [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}\n{context}"}]
    elif kind == "feedback":
        feedback = context
    elif kind != "none":
        solution = context
    return encode_teacher_prompt(tokenizer, messages, template, solution, thinking, max_tokens, feedback)


def _cut_positions(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where a text may be cut: 0 and the end of each of its tokens (every character where offsets are unknown)."""
    if not tokenizer.is_fast:
        return list(range(len(text) + 1))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [0, *(end for _, end in offsets)]


def _first_correct(attempts: Sequence[Attempt], threshold: float) -> Attempt | None:
    return next((attempt for attempt in attempts if attempt.reward >= threshold), None)


def _source(kind: ContextKind, problem: ProblemAttempts, threshold: float) -> Attempt | Missing:
    if kind == "regenerated":
        first_guided = problem.guided[0] if problem.guided else None
        return _first_correct(problem.guided, threshold) or first_guided or "no_guided_completion"
    if kind == "feedback":
        failed = (attempt for attempt in problem.attempts if attempt.reward < threshold)
        return next(failed, None) or "no_failed_completion"
    return _first_correct(problem.attempts, threshold) or "no_correct_completion"


def _donor_context(problem: ProblemAttempts, donor: ProblemAttempts | None, threshold: float) -> Context | Missing:
    """Question and solution of another problem: the same amount of text, none of the information."""
    if donor is None:
        return "no_correct_completion"
    if donor.problem_id == problem.problem_id:
        raise ValueError(f"problem {problem.problem_id} cannot be its own donor")
    found = build_context("solution", donor, threshold=threshold)
    if not isinstance(found, Context):
        return found
    return replace(found, problem_id=problem.problem_id, kind="donor", context=f"{donor.question}\n\n{found.context}")
