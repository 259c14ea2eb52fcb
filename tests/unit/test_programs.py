"""Grading of programs: extraction, comparison, verdicts and feedback, and the refusal to run them unprotected."""

from __future__ import annotations

import json

import pytest

from selfdistill.contexts import build_context
from selfdistill.generation.base import Completion, Sampler
from selfdistill.grading import check_machine, grade, programs
from selfdistill.grading.programs import choose_backend, describe_task, extract_program, is_same_output, is_same_value
from selfdistill.grading.sandbox import Limits, Sandbox, available
from selfdistill.run.job import Job, Tee
from selfdistill.schema.common import CodeGrader, MathGrader
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from small_specs import small

needs_sandbox = pytest.mark.skipif(available() is None, reason="this machine has no sandbox for untrusted programs")


def task(tests, function=None, training=(0,)) -> str:
    pairs = [{"input": given, "output": wanted} for given, wanted in tests]
    return json.dumps({"function": function, "tests": pairs, "training": list(training)})


def block(code: str) -> str:
    return f"I think.\n```python\n{code}\n```\nDone."


DOUBLE = task([("2\n", "4\n"), ("5", "10"), ("-1", "-2")], training=[0, 2])
RIGHT, NEGATIVE_ONLY, LOUD = "print(2 * int(input()))", "print(-2)", "print('the answer', 2 * int(input()))"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("```\na\n```\nor\n```py\nb\n```", "b\n"),
        ("<think>```python\nx\n```</think>\n  ```python\n  y\n  ```", "  y\n"),
        ("```python\nwhole\n```\n```python\ncut off", "whole\n"),
        ("```python\nprint('```')\n```", "print('```')\n"),
        ("```python\n\n```", ""),
        ("no program", ""),
    ],
)
def test_the_last_closed_block_is_the_program(text, program):
    assert extract_program(text) == program


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1 2\n3\n", "1 2 \n3", True),
        ("1.50", "1.5", True),
        ("1\n2", "1 2", False),
        ("Yes", "yes", False),
        ("", "0", False),
        ("1e3", "1000", True),
        ("nan", "nan", True),
    ],
)
def test_outputs_are_compared_line_by_line(found, expected, same):
    assert is_same_output(found, expected) is same


def test_values_are_compared_as_json():
    assert is_same_value("[1, [2, 3]]", "[1,[2,3]]")
    assert is_same_value("0.5", "5e-1")
    assert not is_same_value('"1"', "1")
    assert not is_same_value("1", "not JSON")


@needs_sandbox
def test_every_outcome_with_its_feedback():
    texts = [block(RIGHT), block(LOUD), "nothing", block("x = [][0]"), block("while True: pass")]
    grades = grade(texts, [DOUBLE] * 5, ["eos"] * 5, CodeGrader(timeout_seconds=1))
    assert [item.outcome for item in grades] == ["correct", "wrong", "unparsed", "wrong", "timeout"]
    assert [item.reward for item in grades] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert grades[0].feedback == ""
    assert grades[0].extracted == f"{RIGHT}\n"
    assert grades[1].feedback == (
        "Test 1 of 3: wrong output.\nInput:\n2\nExpected:\n4\nOutput of the program:\nthe answer 4"
    )
    assert "```python" in grades[2].feedback
    assert grades[3].feedback.endswith("IndexError: list index out of range")
    assert grades[4].feedback == "Test 1 of 3: no result within 1 seconds.\nInput:\n2"


@needs_sandbox
def test_training_runs_its_share_of_the_tests_and_evaluation_all():
    only_five_is_wrong = "n = int(input())\nprint(0 if n == 5 else 2 * n)"
    texts = [block(only_five_is_wrong), block(NEGATIVE_ONLY)]
    in_training = grade(texts, [DOUBLE] * 2, ["eos"] * 2, CodeGrader(tests="training"))
    assert [item.outcome for item in in_training] == ["correct", "wrong"]
    assert "of 2" in in_training[1].feedback
    assert [item.outcome for item in grade(texts, [DOUBLE] * 2, ["eos"] * 2, CodeGrader())] == ["wrong", "wrong"]


@needs_sandbox
def test_functions_are_called_and_equal_programs_run_once(monkeypatch):
    started = []

    class Counting(Sandbox):
        def __init__(self, *arguments):
            started.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(programs, "Sandbox", Counting)
    add = task([("[1, 2]\n3", "[1, 2, 3]"), ("[]\n0", "[0]")], "add")
    right = block("class Solution:\n    def add(self, xs: List[int], x: int) -> List[int]:\n        return xs + [x]")
    grades = grade([right, right, block("def add(xs, x):\n    return xs")], [add] * 3, ["eos"] * 3, CodeGrader())
    assert [item.outcome for item in grades] == ["correct", "correct", "wrong"]
    assert "Output of the program:\n[1, 2]" in grades[2].feedback
    assert len(started) == 2


@needs_sandbox
def test_a_program_cannot_see_the_outputs_that_are_expected(tmp_path):
    """Every text in reach of a program: its frames, its globals, its open files, the guest's settings."""
    secret = "outputthatisexpected"
    code = (
        "import gc, sys, os\nfound = [repr(o) for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]\n"
        "frame = sys._getframe()\n"
        "while frame:\n    found.append(repr(frame.f_locals))\n    frame = frame.f_back\n"
        "found += [open(f'/proc/{p}/cmdline').read() for p in ('1', 'self')]\n"
        "print(any('detcepxesitahttuptuo'[::-1] in text for text in found), 'hello-input' in ''.join(found))"
    )
    item = grade([block(code)], [task([("hello-input", secret)])], ["eos"], CodeGrader())[0]
    assert "Output of the program:\nFalse True" in item.feedback


def test_a_cut_off_program_does_not_count_where_eos_is_required():
    item = grade([block(RIGHT)], [DOUBLE], ["length"], CodeGrader(requires_eos=True))[0]
    assert (item.outcome, item.reward) == ("wrong", 0.0)
    assert "length limit" in item.feedback
    assert "length limit" in grade(["so far"], [DOUBLE], ["length"], CodeGrader())[0].feedback


@pytest.mark.parametrize(
    "answer", ["42", "[]", '{"tests": []}', '{"tests": [{"input": 1}]}', task([("1", "2")], training=[3]), "not JSON"]
)
def test_a_gold_answer_that_is_no_task_is_named(answer):
    with pytest.raises(UserError, match="tests of a programming task"):
        grade([block(RIGHT)], [answer], ["eos"], CodeGrader(tests="training"))


def test_without_a_sandbox_programs_are_refused_unless_allowed(monkeypatch):
    monkeypatch.setattr(programs, "available", lambda: None)
    monkeypatch.setattr(programs, "obstacle", lambda name: f"{name} is switched off")
    choose_backend.cache_clear()
    try:
        with pytest.raises(UserError, match="apt-get install bubblewrap.*allow_unsandboxed: true"):
            grade([block(RIGHT)], [DOUBLE], ["eos"], CodeGrader())
        with pytest.raises(UserError, match="has no sandbox"):
            check_machine(CodeGrader())
        check_machine(MathGrader())
        allowed = CodeGrader(allow_unsandboxed=True, timeout_seconds=1)
        texts = [block(RIGHT), block(NEGATIVE_ONLY), block("while True: pass")]
        grades = grade(texts, [DOUBLE] * 3, ["eos"] * 3, allowed)
        assert [item.outcome for item in grades] == ["correct", "wrong", "timeout"]
    finally:
        choose_backend.cache_clear()


def test_without_a_sandbox_the_limits_and_the_clean_up_still_hold():
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nprint(os.getpid())"
    with Sandbox("none", Limits(timeout_seconds=1, memory_mb=256)) as bare:
        own = int(bare.run(daemon, None, "").output)
        assert "MemoryError" in bare.run("x = bytearray(10 ** 10)", None, "").error
        alive = bare.run(f"import os\nprint(os.getsid(0), os.path.exists('/proc/{own}'))", None, "").output
        assert alive.endswith("False\n")


def test_tables_show_the_number_of_tests_and_not_the_tests():
    assert describe_task(DOUBLE).startswith("3 tests, sha256 ")


@needs_sandbox
def test_feedback_goes_from_completions_to_teacher_contexts(tmp_path, monkeypatch):
    """Tables of completions hold it, without the tests themselves; the `feedback` context shows it."""
    from selfdistill.artifacts.store import Artifact, freeze
    from selfdistill.artifacts.tables import PROMPTS, read_rows, write_rows
    from selfdistill.plan.graph import Node
    from selfdistill.schema.common import AssetPin, Sampling
    from selfdistill.schema.sources import FileSource
    from selfdistill.schema.stages import DatasetSpec, ModelSpec, PromptsSpec, RolloutsSpec
    from selfdistill.stages.contexts import read_attempts
    from selfdistill.stages.shared import generate

    monkeypatch.chdir(tmp_path)
    prompt = {
        "row_id": 0,
        "problem_id": "p",
        "family": "",
        "question": "Double it.",
        "answer": DOUBLE,
        "messages": "[]",
        "prompt_ids": [1],
    }

    class Writer(Sampler):
        """A model that knows two programs."""

        def stream(self, prompts, seeds, sampling, *, done, on_progress):
            texts = [block(LOUD), block(RIGHT)]
            yield 0, [Completion([ord(c) for c in text], [0.0] * len(text), "eos") for text in texts]

        def decode(self, ids, skip_special_tokens):
            return "".join(map(chr, ids))

    def finished(node: Node, name: str, rows: list, columns: tuple) -> Artifact:
        freeze(node.folder(), node.frozen_spec)
        artifact = Artifact.open(node.folder())
        write_rows(artifact.payload / name, rows, columns)
        artifact.seal({})
        return artifact

    pin = AssetPin(file="f.jsonl", sha256="0" * 64)
    model = Node(small(ModelSpec, pin=pin), {})
    problems = Node(small(DatasetSpec, source=FileSource(pin=pin)), {})
    prompts = Node(
        small(PromptsSpec, question_template="{question}", max_prompt_tokens=9), {"model": model, "problems": problems}
    )
    grader = CodeGrader()
    spec = small(RolloutsSpec, samples=2, sampling=Sampling(max_tokens=9), grader=grader)
    rollouts = Node(spec, {"model": model, "prompts": prompts})
    for node, name in ((model, "model.parquet"), (problems, "problems.parquet")):
        finished(node, name, [], ("row_id",))
    finished(prompts, "prompts.parquet", [prompt], PROMPTS)
    freeze(rollouts.folder(), rollouts.frozen_spec)
    artifact = Artifact.open(rollouts.folder())
    with Tee(tmp_path / "log", "test") as tee:
        job = generate.RolloutJob(Job(artifact, StageRuntime(), tee), spec, generate.read_prompts(artifact))
        monkeypatch.setattr(generate, "model_folder", lambda model, step: tmp_path)
        monkeypatch.setattr(generate, "load_sampler", lambda *_, **__: Writer())
        monkeypatch.setattr(generate, "load_tokenizer", lambda folder: Writer())
        job.sample(None)
        job.merge([None])
    artifact.seal({})
    stored = read_rows(artifact.payload / "rollouts.parquet")
    assert [row["reward"] for row in stored] == [0.0, 1.0]
    assert {row["answer"] for row in stored} == {describe_task(DOUBLE)}
    (attempts,) = read_attempts(artifact, guided=False)
    context = build_context("feedback", attempts)
    assert context.context.startswith("Test 1 of 3: wrong output.")
    assert context.source_sample == 0
