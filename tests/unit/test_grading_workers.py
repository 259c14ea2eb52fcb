"""Grading in worker processes: math-verify's verdicts, and that nothing can hang, leak or get mixed up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.grading import WorkerPool, grade
from selfdistill.grading.notation import rewrite
from selfdistill.schema.common import MathGrader

MATHS = MathGrader()
HANGS = ["9^{9^{9^{9}}}", "10000000!", "7^{99999999}", "(" * 60 + "1" + ")" * 60]


@pytest.fixture(scope="module")
def pool():
    with WorkerPool() as pool:
        yield pool


def test_math_verify_decides_the_rest(pool):
    cases = [
        ("5.0", "5", "correct"),
        ("1,000", "1000", "correct"),
        (r"\frac24", r"\frac{1}{2}", "correct"),
        ("0.5", r"\frac{1}{2}", "correct"),
        (r"50\%", "0.5", "correct"),
        (r"\{2,1\}", r"\{1,2\}", "correct"),
        ("(1, 2)", "(1,2)", "correct"),
        ("x=3", "3", "correct"),
        ("Evelyn", r"\text{Evelyn}", "correct"),
        ("0.3333", r"\frac{1}{3}", "wrong"),
        ("12.0000001", "12", "wrong"),
        ("(2,1)", "(1,2)", "wrong"),
        (r"\text{five}", "5", "wrong"),
        ("?", "5", "unparsed"),
        ("\x00\ud800", "5", "unparsed"),
    ]
    outcomes = pool.compare([(answer, gold) for answer, gold, _ in cases], 20)
    assert [(a, g, o) for (a, g, _), o in zip(cases, outcomes, strict=True)] == cases


def test_a_hanging_comparison_is_a_timeout_and_the_rest_goes_on(pool):
    texts = [rf"\boxed{{{answer}}}" for answer in [*HANGS, r"\frac24", HANGS[0]]]
    start = time.monotonic()
    graded = grade(texts, ["5"] * 4 + ["0.5", "5"], ["eos"] * 6, MathGrader(timeout_seconds=0.7), pool)
    assert [item.outcome for item in graded] == ["timeout"] * 4 + ["correct", "timeout"]
    assert {item.reward for item in graded} == {0.0, 1.0}
    assert time.monotonic() - start < 60


def test_several_workers_share_the_work_and_hang_side_by_side():
    with WorkerPool(processes=2) as pool:
        pairs = [(HANGS[0], "5"), ("0.5", "1/2"), (HANGS[1], "5"), ("0.25", "1/4")]
        assert pool.compare(pairs, 1.0) == ["timeout", "correct", "timeout", "correct"]


def alive(pool: WorkerPool) -> list[int]:
    """The pool's processes that are alive now."""
    return [worker.process.pid for worker in pool._workers if worker.process.poll() is None]


def test_the_pool_starts_lazily_and_survives_killed_workers():
    with WorkerPool() as pool:
        assert alive(pool) == []
        assert pool.compare([("0.5", "1/2")], 20) == ["correct"]
        (first,) = alive(pool)
        os.kill(first, signal.SIGKILL)
        assert pool.compare([("0.5", "1/2")], 20) == ["correct"]
        (second,) = alive(pool)
        assert second != first
    assert alive(pool) == []
    assert not is_alive(second)


def test_an_interrupted_call_leaves_no_answer_for_the_next_one():
    def interrupt(*_):
        raise KeyboardInterrupt

    with WorkerPool() as pool:
        pool.compare([("0.5", "1/2")], 20)
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(KeyboardInterrupt):
                pool.compare([(HANGS[0], "5")], 60)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert pool.compare([("0.5", "1/2"), ("3.0", "4")], 20) == ["correct", "wrong"]


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with WorkerPool() as pool, pytest.raises(RuntimeError, match="could not start"):
        pool.compare([("0.5", "1/2")], 5)


def test_the_shared_workers_end_with_the_program():
    code = (
        "from selfdistill.grading import grade, grader\n"
        "from selfdistill.schema.common import MathGrader\n"
        "print(grade([r'\\boxed{x+1}'], ['1+x'], ['eos'], MathGrader())[0].outcome)\n"
        "print(grader._shared._workers[0].process.pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    outcome, process_id = done.stdout.split()
    assert outcome == "correct"
    assert not is_alive(int(process_id))
    assert done.stderr == ""


def test_a_hanging_worker_ends_soon_after_its_parent_was_killed():
    code = (
        "from selfdistill.grading import WorkerPool\n"
        "pool = WorkerPool()\n"
        "pool.compare([('0.5', '1/2')], 20)\n"
        "print(pool._workers[0].process.pid, flush=True)\n"
        f"pool.compare([('{HANGS[0]}', '5')], 1.0)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(worker)


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=40), gold=st.sampled_from(["5", r"\frac{1}{2}", "x+1"]))
def test_any_text_gets_a_verdict(pool, text, gold):
    graded = grade([text, "\\boxed{" + text + "}"], [gold, gold], ["eos", "length"], MATHS, pool)
    for item in graded:
        assert item.outcome in {"correct", "wrong", "unparsed", "timeout"}
        assert item.reward == (item.outcome == "correct")


def test_fast_prediction_reads_every_answer_of_the_table_as_the_full_one_does():
    """In a process of its own, as the parser is changed for all of it."""
    code = """
import csv, logging, sys
from latex2sympy2_extended import latex2sympy2
from math_verify import parse
from math_verify.parser import parse_latex_cached
from selfdistill.grading.worker import predict_fast

logging.disable(logging.CRITICAL)
texts = sorted({row["gold"] for row in csv.DictReader(open(sys.argv[1], encoding="utf-8", newline=""))})
read = lambda text: repr(parse("\\\\boxed{" + text + "}", parsing_timeout=None))
before = list(map(read, texts))
predict_fast()
parse_latex_cached.cache_clear()
for text, full in zip(texts, before):
    fast = read(text)
    assert fast == full, (text, full, fast)
print(len(texts), len(set(before)), latex2sympy2._Latex2Sympy.parse.__name__)
"""
    table = Path(__file__).parents[1] / "golden" / "grading.csv"
    done = subprocess.run([sys.executable, "-c", code, str(table)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts, readings, parser = done.stdout.split()
    assert int(texts) > 200 and int(readings) > 150 and parser == "parse_twice"


@pytest.mark.parametrize("rules", ["math_verify", "extended"])
def test_hostile_answers_end_within_the_limit_and_the_run_goes_on(pool, rules):
    junk = bytes(range(256)).decode("latin-1")
    answers = [
        HANGS[0], "{" * 10_000 + "1" + "}" * 10_000, "{" * 100 + "1" + "}" * 100, "1" * 2_000_000, "x" * 1_000_000,
        junk, junk.replace("{", "").replace("}", "")[:200], "\ud800" * 50, "\\frac{" * 30, "(" * 250,
        "9" * 250 + "^" + "9", "\\sqrt" * 60, "^" * 250, r"\text{" * 40 + "}" * 40, "1,000" * 50, "0.\\overline{" * 20,
        HANGS[1],
    ]  # fmt: skip
    texts = [f"\\boxed{{{answer}}}" for answer in answers]
    texts.insert(5, "\\boxed{" * 100_000)
    texts.append(r"\boxed{\frac24}")
    start = time.monotonic()
    grader = MathGrader(timeout_seconds=0.7, rules=rules)
    graded = grade(texts, ["0.5"] * len(texts), ["eos"] * len(texts), grader, pool)
    assert graded[-1].outcome == "correct"
    assert all(item.outcome in ("wrong", "unparsed", "timeout") and item.reward == 0.0 for item in graded[:-1])
    # Of 19 comparisons at most all hit the limit, and a killed worker takes some seconds to be replaced.
    assert time.monotonic() - start < 19 * 10
    long = [item for item, text in zip(graded, texts, strict=True) if len(text) > 300]
    assert {item.outcome for item in long} == {"unparsed"}


def gold_answers() -> list[str]:
    root = os.environ.get("SELFDISTILL_TEST_DATA")
    if not root:
        pytest.skip("SELFDISTILL_TEST_DATA is not set")
    import pyarrow.parquet as pq

    golds = []
    for name in ("aime24", "aime25", "amc23", "math500"):
        column = pq.read_table(Path(root, "math", "evaluation", f"{name}.parquet")).column("reward_model").to_pylist()
        golds += [(json.loads(item) if isinstance(item, str) else item)["ground_truth"] for item in column]
    return golds


@pytest.mark.data
@pytest.mark.parametrize("rules", ["math_verify", "extended"])
def test_every_gold_answer_of_the_evaluation_sets_is_correct_in_a_box(pool, rules):
    golds = gold_answers()
    assert len(golds) == 600
    texts = [f"Thus \\boxed{{{gold}}}." for gold in golds]
    graded = grade(texts, golds, ["eos"] * 600, MathGrader(rules=rules), pool)
    assert {item.outcome for item in graded} == {"correct"}


@pytest.mark.data
def test_math_verify_reads_every_gold_answer_as_it_is_and_rewritten(pool):
    golds = list(dict.fromkeys(gold_answers()))
    assert set(pool.compare([(gold, gold) for gold in golds], 20)) == {"correct"}
    rewritten = [(rewrite(gold), gold) for gold in golds]
    assert set(pool.compare(rewritten, 20)) == {"correct"}


@pytest.mark.data
def test_both_rules_tell_the_gold_answers_of_different_problems_apart_alike(pool):
    golds = sorted({gold for gold in gold_answers() if not gold.isdigit()})
    texts = [f"\\boxed{{{gold}}}" for gold in golds]
    others = golds[1:] + golds[:1]
    plain, extended = (
        [item.outcome for item in grade(texts, others, ["eos"] * len(texts), MathGrader(rules=rules), pool)]
        for rules in ("math_verify", "extended")
    )
    differing = {
        (text, gold) for text, gold, a, b in zip(texts, others, plain, extended, strict=True)
        if (a == "correct") != (b == "correct")
    }  # fmt: skip
    assert differing == set()


def is_alive(process_id: int) -> bool:
    """A zombie whose new parent does not reap counts as ended."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
