"""Settings that several stages share: sampling, grading, optimiser, templates, pinned assets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfdistill.schema.base import Model, Since

Engine = Annotated[Literal["torch", "vllm"], Field(description="Engine that samples.")]
KvCacheType = Annotated[
    Literal["auto", "fp8_e4m3", "fp8_e5m2"],
    Since("auto"),
    Field(
        description="Type of vLLM's KV cache; auto: the model's. Eight bits change what is sampled (docs/engines.md)."
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16"], Field(description="Compute type of training; master weights are float32.")
]
Samples = Annotated[int, Field(gt=0, description="Completions per problem: the k of avg@k.")]
#: Seed of a random generator: what all libraries take.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MathRules = Literal["extended", "math_verify", "paper_reward"]


class Sampling(Model):
    """How completions are drawn."""

    temperature: float = Field(1.0, ge=0, description="Softmax temperature; 0 takes the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass kept; 1 keeps everything.")
    top_k: int = Field(0, ge=0, description="Number of most likely tokens kept; 0 keeps all.")
    max_tokens: int = Field(gt=0, description="Longest completion in tokens.")

    @property
    def is_untruncated(self) -> bool:
        return self.top_p == 1.0 and self.top_k == 0


class ThinkingMarks(Model):
    """What stands before and after the thinking in a completion; special tokens are written as their texts."""

    opening: str = Field(min_length=1, description="For example <think>.")
    closing: str = Field(min_length=1, description="For example </think>.")


_RULES = (
    "extended: other notations of the same answer count; math_verify: its verdicts alone, "
    "as in the shipped experiments; "
    "paper_reward: as the paper's training reward reads the box (docs/method.md 12)."
)


class MathGrader(Model):
    """The last boxed answer against the gold answer.

    Training reward of the paper: `scope_characters: 100`. Evaluation: no scope (docs/method.md 12).
    """

    kind: Literal["math"] = "math"
    scope_characters: int | None = Field(
        None, gt=0, description="Look for the box only in the last N characters; null looks everywhere."
    )
    requires_eos: bool = Field(False, description="A completion cut off by the length limit counts as wrong.")
    timeout_seconds: float = Field(5.0, gt=0, description="Limit for one comparison, after which it is a timeout.")
    fallback: Annotated[Literal["none", "answer_line", "last_number"], Since("none")] = Field(
        "none", description="Where to look if there is no box: nowhere, after the last `answer:`, the last number."
    )
    rules: Annotated[MathRules, Since("math_verify")] = Field("math_verify", description=_RULES)


class MathGraderEntry(MathGrader):
    """The same in the settings, where the rules are `extended` unless they say another.

    In the spec of an artifact, rules that are not named are `math_verify`: the only ones when the first were made.
    """

    rules: Annotated[MathRules, Since("math_verify")] = Field("extended", description=_RULES)


class ChoiceGrader(Model):
    """A letter: the last boxed one, else the last one stated (`answer: X`), against the gold letter."""

    kind: Literal["choice"] = "choice"
    choices: str = Field("ABCDEFGHIJ", min_length=2, description="The letters that are answers.")
    rules: Annotated[Literal["statement", "paper_reward"], Since("statement")] = Field(
        "statement",
        description="statement: the box, else the last statement; paper_reward: what stands in the last <answer> tags.",
    )
    requires_eos: bool = Field(False, description="A completion cut off by the length limit counts as wrong.")


class CodeGrader(Model):
    """A program, the last fenced block of a completion, run on the unit tests of its task in a sandbox."""

    kind: Literal["code"] = "code"
    tests: Literal["training", "all"] = Field(
        "all", description="training: the tests that the task sets aside for the reward; all: every test."
    )
    timeout_seconds: float = Field(6.0, gt=0, description="Processor time of one test, after which it is a timeout.")
    memory_mb: int = Field(1024, ge=64, description="Address space of one process of a program.")
    output_mb: int = Field(16, gt=0, description="Most that a program may write, to its output or into one file.")
    requires_eos: bool = Field(False, description="A completion cut off by the length limit counts as wrong.")
    allow_unsandboxed: bool = Field(
        False, description="Where the machine has no sandbox, run programs without one, instead of refusing."
    )


#: `module:function`, as in pyproject.toml's entry points.
PYTHON_FUNCTION = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"


class PythonGraderEntry(Model):
    """A function of your own in a module of the project folder or of a package.

    It is `grade(completion, answer)`, or `grade(completion, answer, question)` where it needs the question.
    """

    kind: Literal["python"] = "python"
    function: str = Field(
        pattern=PYTHON_FUNCTION,
        description="`module:function`. It returns true or false, a number from 0 to 1, or None for no answer.",
    )
    timeout_seconds: float = Field(10.0, gt=0, description="Limit for one call, after which it is a timeout.")
    requires_eos: bool = Field(False, description="A completion cut off by the length limit counts as wrong.")


class PythonGrader(PythonGraderEntry):
    """The same in the spec of an artifact."""

    code: str = Field(description="Digest of the code of the module, with what it uses of its own package.")


Grader = MathGrader | ChoiceGrader | CodeGrader | PythonGrader
GraderEntry = MathGraderEntry | ChoiceGrader | CodeGrader | PythonGraderEntry


Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimiser(Model):
    """AdamW with linear warm-up, then constant or cosine (docs/method.md 7.5)."""

    learning_rate: float = Field(gt=0, description="Peak learning rate, e.g. 1.0e-5.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW betas.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay.")
    warmup_steps: int = Field(10, ge=0, description="Linear warm-up, in training steps.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="After the warm-up.")
    final_fraction: float = Field(0.05, ge=0, le=1, description="Where cosine ends, as a share of the peak.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping norm.")


class Lora(Model):
    """Low-rank adapters in place of all weights; checkpoints hold the sum (docs/method.md 7.6)."""

    rank: int = Field(16, gt=0, description="Rank of each adapter.")
    alpha: float = Field(32.0, gt=0, description="The adapter's product is scaled by alpha / rank.")
    target_modules: list[str] | None = Field(
        None, min_length=1, description="Names of the linear layers, e.g. [q_proj, v_proj]; null is all but the head."
    )


class Example(Model):
    """A worked example, shown as an earlier turn of the chat."""

    question: str = Field(description="What the user said, as the question template words it.")
    completion: str = Field(description="What the assistant answered.")


class RepromptTemplate(Model):
    """How a teacher context is worded: only the named slots are filled, all other braces are literal."""

    frame: str = Field(description="The whole teacher prompt; holds {prompt}, {solution} and {feedback}.")
    solution: str = Field(description="The solution section; holds {successful_previous_attempt}.")
    feedback: str = Field("", description="The feedback section; holds {feedback_raw}.")

    @model_validator(mode="after")
    def _has_slots(self) -> RepromptTemplate:
        slots = (("frame", "{prompt}"), ("frame", "{solution}"), ("solution", "{successful_previous_attempt}"))
        for name, slot in slots:
            if slot not in getattr(self, name):
                raise ValueError(f"{name} lacks the slot {slot}")
        return self


class AssetPin(Model):
    """What identifies an external asset: a hub revision, or the sha256 of a file. Never a branch, never a path."""

    repo: str | None = Field(None, description="Hub or repository id.")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$", description="Commit of the hub or repository.")
    file: str | None = Field(None, description="File inside the repository.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="Digest of the file.")

    @model_validator(mode="after")
    def _is_pinned(self) -> AssetPin:
        if self.revision is None and self.sha256 is None:
            raise ValueError("needs a 40-hex revision or a sha256")
        return self
