"""Dotted paths into a row: through objects, lists (by index, from the end too), conversations (by role), JSON texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selfdistill.sources.text_tables import parse_json

#: What a path that leads nowhere finds; None is a value.
MISSING = object()
#: Who speaks in a turn, in the two published forms of conversations.
_ROLE_KEYS = ("role", "from")
USER_ROLES = ("user", "human")
SYSTEM_ROLES = ("system", "developer")


def look_up(row: Any, path: str) -> Any:
    """Value at a path, or MISSING. `prompt.user.content` is what the last turn of that role says.

    A key that itself holds dots is found when it equals all that is left of the path.
    """
    *_, last = walk(row, path)
    return last


def walk(row: Any, path: str) -> Iterator[Any]:
    """All values on the way, JSON texts parsed; the last one is what the path leads to, or MISSING."""
    value, rest = row, path
    while rest:
        if isinstance(value, str):
            value = _parse(value)
        yield value
        if isinstance(value, Mapping) and rest in value:
            yield value[rest]
            return
        part, _, rest = rest.partition(".")
        value = _step(value, part)
        if value is MISSING:
            break
    yield value


def role_of(turn: Any) -> str | None:
    """Who speaks in a turn of a conversation; None for what is no turn."""
    if not isinstance(turn, Mapping):
        return None
    return next((str(turn[key]).lower() for key in _ROLE_KEYS if isinstance(turn.get(key), str)), None)


def is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(role_of(turn) is not None for turn in value)


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, MISSING)
    if not isinstance(value, list):
        return MISSING
    if part.removeprefix("-").isdecimal():
        index = int(part)
        return value[index] if -len(value) <= index < len(value) else MISSING
    return next((turn for turn in reversed(value) if role_of(turn) == part), MISSING)


def _parse(text: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return MISSING
