"""The worker's side of a user's function: run as `python -m selfdistill.grading.function_worker module:function`.

Whatever goes wrong is a reply, so that it becomes one line of the job and not a verdict.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable
from numbers import Real
from typing import Any

from selfdistill.grading.function import CHECK
from selfdistill.grading.worker import serve
from selfdistill.schema.errors import UserError
from selfdistill.schema.outside import GRADER_FORMS, QUESTION, load_module

_WANTED = "true or false, a number from 0 to 1, or None for no answer"
_SHOWN_CHARACTERS = 60


def load_function(name: str) -> tuple[Callable[..., Any], inspect.Parameter | None]:
    """The function `module:function`, and its parameter for the question; UserError where there is none to call."""
    module, _, attribute = name.partition(":")
    function = getattr(load_module(module, "kind python"), attribute, None)
    if not callable(function):
        raise UserError(f"{module} has no function `{attribute}`.")
    signature = inspect.signature(function)
    asked = signature.parameters[QUESTION] if QUESTION in list(signature.parameters)[2:] else None
    try:
        signature.bind("completion", "answer", **({QUESTION: "question"} if asked else {}))
    except TypeError as error:
        raise UserError(f"it {GRADER_FORMS} ({error}).") from None
    return function, asked


def reply_to(function: Callable[..., Any], completion: str, answer: str, **question: str) -> dict[str, Any]:
    """`{"reward": number or None}`, or `{"error": reason}`."""
    given = {"completion": completion, "answer": answer, **question}
    shown = "for " + " and ".join(f"the {name} {text[:_SHOWN_CHARACTERS]!r}" for name, text in given.items())
    try:
        value = function(completion, answer, **question)
        value = value.item() if hasattr(value, "item") else value  # A number of numpy or torch.
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno}), {shown}."}
    if value is None:
        return {"reward": None}
    if not isinstance(value, Real) or not math.isfinite(value) or not 0 <= value <= 1:
        return {
            "error": f"returned {str(value)[:_SHOWN_CHARACTERS]!r} ({type(value).__name__}) {shown}: return {_WANTED}."
        }
    return {"reward": float(value)}


def load_replies() -> Callable[[dict[str, Any]], str]:
    """The function (request) -> line; a function that cannot be loaded answers every request with the reason."""
    try:
        (function, asked), problem = load_function(sys.argv[1]), None
    except (Exception, SystemExit) as error:
        problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"

    def reply(request: dict[str, Any]) -> str:
        if problem is not None:
            return json.dumps({"error": problem})
        if request["rules"] == CHECK:
            return json.dumps({"reward": None})
        completion, answer, *question = request["texts"]
        if asked and not question and asked.default is asked.empty:
            return json.dumps(
                {"error": "it takes the question, and this record has none: name its field (--question-field)."}
            )
        found = reply_to(function, completion, answer, **({QUESTION: question[0]} if asked and question else {}))
        return json.dumps({name: " ".join(v.split()) if isinstance(v, str) else v for name, v in found.items()})

    return reply


if __name__ == "__main__":
    serve(load_replies)
