"""One clear error for a user's mistake: file, field, value, way out; no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

#: Exit code for a mistake of the user: never retried.
EXIT_USER_ERROR = 2
#: Exit code that asks for a retry: pre-empted or out of time, state saved (EX_TEMPFAIL).
EXIT_RETRY = 75


class UserError(Exception):
    """A mistake that the user can mend; its message names the way out."""


class Interrupted(Exception):
    """Stopped on request, with the state saved: the same command goes on from there."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean ...?` or the empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{match[0]}`?" if match else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list, with the list."""
    known = sorted(known)
    return UserError(f"unknown {kind} `{name}`.{nearest(name, known)} Known: {', '.join(known) or 'none'}.")


def explain_validation(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """Turn pydantic's report into one line per problem, with file, field, value and way out."""
    return UserError("\n".join(_line(item, model, where) for item in error.errors(include_url=False)))


def _line(item: dict[str, Any], model: type[BaseModel], where: str) -> str:
    path = ".".join(str(part) for part in item["loc"] if part != "[key]")
    at = f"`{path}`: " if path else ""
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key `{path}`.{nearest(str(item['loc'][-1]), _field_names(model))}"
    if item["type"] == "missing":
        return f"{where}: `{path}` is missing."
    value = item.get("input")
    shown = f" (found {value!r})" if not isinstance(value, dict | list | BaseModel) else ""
    return f"{where}: {at}{item['msg'].removeprefix('Value error, ')}{shown}."


def _field_names(model: type[BaseModel], seen: set[type] | None = None) -> set[str]:
    """All field names reachable from a model: the vocabulary for suggestions."""
    seen = set() if seen is None else seen
    if model in seen:
        return set()
    seen.add(model)
    names = set(model.model_fields)
    for field in model.model_fields.values():
        for part in _models_in(field.annotation):
            names |= _field_names(part, seen)
    return names


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]
