"""Graders of the user's own (`kind: python`): the digest of their code enters the keys."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.artifacts.source_digest import outside_digest
from selfdistill.schema.common import PythonGrader, PythonGraderEntry
from selfdistill.schema.config import Config
from selfdistill.schema.errors import SettingError, UserError
from selfdistill.schema.outside import GRADER_FORMS, QUESTION, look_in_project, where_to_put


def with_code(config: Config) -> Config:
    """The config with the digest of the code in each such grader; SettingError where there is no such function."""
    sections = {"datasets": "reward", "models": "reward", "benchmarks": "grader"}
    return config.model_copy(
        update={section: _with_code(section, getattr(config, section), field) for section, field in sections.items()}
    )


def _with_code(section: str, entries: Mapping[str, Any], field: str) -> dict[str, Any]:
    found = dict(entries)
    for name, entry in entries.items():
        grader = getattr(entry, field)
        if isinstance(grader, PythonGraderEntry):
            try:
                code = code_of(grader.function)
            except UserError as error:
                raise SettingError.at(section, name, field, "function", problem=error) from None
            found[name] = entry.model_copy(update={field: PythonGrader(**grader.model_dump(), code=code)})
    return found


def code_of(function: str) -> str:
    """Digest of the code behind `module:function`.

    The module is not imported, since a grader may load a model; the packages around it are. Raises UserError where
    the module has no Python source or does not define the function, or where its definition takes neither two
    arguments nor the question besides.
    """
    look_in_project()
    module, _, name = function.partition(":")
    try:
        spec = importlib.util.find_spec(module)
        source = ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else None
    except (Exception, SystemExit) as error:  # The packages around the module run, and may raise anything.
        raise UserError(f"reading {module} failed: {type(error).__name__}: {error}. {where_to_put(module)}") from None
    if source is None:
        raise UserError(f"there is no module {module}. {where_to_put(module)}")
    if name not in _bound(source):
        raise UserError(f"{module} has no function `{name}` at its top level.")
    for statement in source.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name and not _can_be_called(statement.args):
            raise UserError(f"{name} {GRADER_FORMS} ({spec.origin}).")
    return outside_digest([module])


def _bound(source: ast.Module) -> set[str]:
    """Names that the top level of a module defines, assigns or imports."""
    names = set()
    for statement in ast.walk(source):
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.Name) and isinstance(statement.ctx, ast.Store):
            names.add(statement.id)
    return names


def _can_be_called(arguments: ast.arguments) -> bool:
    """Whether a call `(completion, answer)` fits, or `(completion, answer, question=...)` if there is a `question`."""
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    required = len(names) - len(arguments.defaults)
    by_name = {a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None}
    if QUESTION in names[2:]:
        required -= names.index(QUESTION) < required
    return required <= 2 and by_name <= {QUESTION} and (len(names) >= 2 or arguments.vararg is not None)
