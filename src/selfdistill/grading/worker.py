"""The worker's side: read a pair, compare, write the outcome; run as `python -m selfdistill.grading.worker`.

math-verify's own limits are off. The parent kills this process at the limit. Should the parent be gone, the thread that
reads the pipe ends it at once, and a watchdog of the interpreter soon after the limit, if a comparison lets no other
thread run: no runaway comparison outlives a job.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, Literal

from selfdistill.grading.equivalence import is_same

Rules = Literal["extended", "math_verify", "paper_reward"]

#: Address space of a worker: an answer of twenty characters can ask for more than the machine has.
MEMORY_BYTES = 4 * 2**30
#: How much later than the parent the watchdog acts.
GRACE_SECONDS = 2.0
#: Parsed texts kept: every answer to a problem is compared with one gold answer, and parsing takes most of the time.
_REMEMBERED = 1024
_CHUNK_BYTES = 1 << 16


def load_comparison() -> Callable[[str, str, Rules], str]:
    """The function (answer, gold, rules) -> outcome; importing math-verify takes most of a second."""
    from math_verify import parse, verify

    @lru_cache(_REMEMBERED)
    def read(text: str) -> list[Any]:
        return parse(text, parsing_timeout=None)

    def compare(answer: str, gold: str, rules: Rules) -> str:
        # A bare number without an anchor is not found by every extraction rule, so both sides are boxed; the official
        # reward hands over what stands in the box alone.
        form = "{}" if rules == "paper_reward" else "\\boxed{{{}}}"
        try:
            wanted = read(form.format(gold))
            if not _is_read(wanted):
                return (
                    "correct" if verify(wanted, read(form.format(answer)), timeout_seconds=None) else "unreadable_gold"
                )
            given = read(form.format(answer))
            # Under extended rules an inequality may stand for the interval that the gold answer is.
            is_correct = verify(wanted, given, timeout_seconds=None, allow_set_relation_comp=rules == "extended")
            if rules == "extended" and (same := is_same(wanted[0], given[0] if given else None)) is not None:
                is_correct = same
        except Exception:  # Any text may come in, and the parser's errors are of every kind, MemoryError included.
            return "unparsed"
        return "correct" if is_correct else "wrong" if _is_read(given) else "unparsed"

    compare("\\frac{1}{2}", "0.5", "math_verify")  # Builds the parser's tables, which must not count against the limit.
    return compare


def _is_read(parsed: list[Any]) -> bool:
    """Whether math-verify made an expression of a text; else it comes back as the bare text, or as nothing."""
    return any(not isinstance(item, str) for item in parsed)


def predict_fast() -> None:
    """Let the LaTeX parser try ANTLR's fast prediction (SLL) first, and its full one (LL) where that fails.

    Where SLL finds a tree it is the tree of LL, by ANTLR's contract; pairs, sets and intervals are read ten times as
    fast. Does nothing where the library has been rebuilt.
    """
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended import latex2sympy2

    reader = getattr(latex2sympy2, "_Latex2Sympy", None)
    if reader is None or not hasattr(reader, "create_parser") or not hasattr(reader, "parse"):
        return
    create_parser, parse = reader.create_parser, reader.parse

    def create(self: Any, text: str) -> Any:
        parser = create_parser(self, text)
        parser._interp.predictionMode = self.prediction
        return parser

    def parse_twice(self: Any, text: str) -> Any:
        self.prediction = PredictionMode.SLL
        try:
            return parse(self, text)
        except Exception:  # The parser raises bare ones.
            self.prediction = PredictionMode.LL
            return parse(self, text)

    reader.create_parser, reader.parse = create, parse_twice


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def serve(load: Callable[[], Callable[[dict[str, Any]], str]]) -> None:
    """Answer requests, one line each, until the parent closes the pipe; `load` makes the function that answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.
    requests = _requests()
    # Nothing but outcomes may reach the pipe, whatever a library prints.
    outcomes = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answer = load()
    print("ready", file=outcomes, flush=True)
    with open(os.devnull, "w") as nowhere:
        while True:
            request = json.loads(requests.get())
            faulthandler.dump_traceback_later(request["timeout_seconds"] + GRACE_SECONDS, exit=True, file=nowhere)
            outcome = answer(request)
            faulthandler.cancel_dump_traceback_later()
            print(outcome, file=outcomes, flush=True)


def _requests() -> SimpleQueue[bytes]:
    """The lines of standard input as they come. At its end, when the parent is gone, this process ends in mid-call.

    Not by the death signal of the kernel: it comes when the thread ends that started the process, and pools are started
    by threads of short life.
    """
    requests: SimpleQueue[bytes] = SimpleQueue()
    pipe = os.dup(sys.stdin.fileno())
    with open(os.devnull, "rb") as nothing:  # What is graded may read standard input, and must not get a request.
        os.dup2(nothing.fileno(), sys.stdin.fileno())

    def read() -> None:
        rest = b""
        while chunk := os.read(pipe, _CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                requests.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests


def load_outcomes() -> Callable[[dict[str, Any]], str]:
    """The function (request) -> outcome of math-verify, in a process of bounded memory."""
    _limit_memory()
    logging.disable(logging.CRITICAL)
    predict_fast()
    compare = load_comparison()
    return lambda request: compare(*request["texts"], request["rules"])


if __name__ == "__main__":
    serve(load_outcomes)
