"""Code of the user's: modules in the project folder, or in a package that is installed."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

from selfdistill.schema.errors import UserError

#: A grader of the user's is given the question of the problem if its third parameter has this name.
QUESTION = "question"
GRADER_FORMS = f"must take (completion, answer), or (completion, answer, {QUESTION}) with exactly this third name"


def look_in_project() -> None:
    """Let imports find modules in the current directory, after all others: a job runs in the project folder."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def load_module(name: str, why: str) -> Any:
    """Import a module of the user's; `why` begins the message of the UserError, which names the line that failed."""
    look_in_project()
    try:
        return importlib.import_module(name)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = "" if isinstance(error, ModuleNotFoundError) else f" ({last.filename}, line {last.lineno})"
        raise UserError(
            f"{why}: importing {name} failed: {type(error).__name__}: {error}{at}. {where_to_put(name)}"
        ) from error


def where_to_put(module: str) -> str:
    """The way out where a module is not found."""
    return f"Put {module.partition('.')[0]} into the project folder, or install it."
