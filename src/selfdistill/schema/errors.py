"""One clear error for a user's mistake: file, field, value, way out; no traceback."""

from __future__ import annotations

import difflib
import errno
import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from pydantic import BaseModel, ValidationError

#: Exit code for a mistake of the user: never retried.
EXIT_USER_ERROR = 2
#: Exit code that asks for a retry: pre-empted or out of time, state saved (EX_TEMPFAIL).
EXIT_RETRY = 75
#: Exit code of a process that SIGKILL ended, and of a job that ran out of memory: on Linux mostly the same thing.
EXIT_KILLED = 128 + signal.SIGKILL


class UserError(Exception):
    """A mistake that the user can correct; its message names the way out."""


#: The longest value that a message repeats.
_SHOWN_CHARACTERS = 80

#: Where a setting is: the keys that lead to it.
Keys = tuple[str | int, ...]


class SettingError(UserError):
    """Mistakes in settings, each with its keys. Whoever knows the files puts their names before the lines."""

    def __init__(self, problems: Sequence[tuple[Keys, str]]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(text for _, text in self.problems))

    @classmethod
    def at(cls, *keys: str | int, problem: object) -> SettingError:
        """One mistake at one setting."""
        return cls([(keys, f"`{dotted(keys)}`: {problem}")])

    def named(self, source: Callable[[Keys], str]) -> UserError:
        """The same error with the file of each mistake before it, as `source` gives it."""
        return UserError("\n".join(f"{source(keys)}: {text}" for keys, text in self.problems))


class Interrupted(Exception):
    """Stopped on request, with the state saved: the same command continues from there."""


#: What a path is that is laid out in another way than expected.
_LAYOUT = {
    errno.EXDEV: "lies on another file system than the folder that it is moved to",
    errno.EISDIR: "is a folder, but must be a file",
    errno.ENOTDIR: "is below a file that must be a folder",
    errno.ELOOP: "is a link that leads back to itself",
}


def disk_problem(error: BaseException) -> str | None:
    """One sentence on a disk that is full, may not be written, or is laid out in another way; None for other errors.

    Libraries in Rust and C++ (safetensors, arrow) report a full disk by other classes than OSError.
    """
    code, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"the disk is full{f' ({file})' if file else ''}. Free space, run again."
    if code == errno.EFBIG:
        return f"{file or 'a file'} is larger than this disk or a limit (ulimit -f) allows. Raise it, run again."
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) and file:
        return f"{file} cannot be read or written: {error.strerror}. Correct its permissions, run again."
    if code in _LAYOUT and file:
        return f"{file} {_LAYOUT[code]}. Put it right, run again."
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the node ran out (that of a GPU is another matter); torch says so in a RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def without_password(text: str, uri: str = "") -> str:
    """A text without the user and password of any address in it, or of `uri`, which may hold them in its query, too."""
    parts = urlsplit(uri)
    text = text.replace(uri, public_address(uri)) if uri else text
    password = parts.netloc.rpartition("@")[0].partition(":")[2]
    for secret in (password, unquote(password), parts.query, *(value for _, value in parse_qsl(parts.query))):
        text = text.replace(secret, "***").replace(quote(secret), "***") if len(secret) > 2 else text
    return re.sub(r"(://[^\s?#]*)[?#]\S*", r"\1", re.sub(r"://\S*@", "://", text))


def public_address(uri: str) -> str:
    """Scheme, host, port and path of an address: what a message may show. ValueError if it cannot be parsed."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean ...?` or the empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{match[0]}`?" if match else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list, with the list."""
    known = sorted(map(str, known))  # Keys of a wrong file may be numbers.
    return UserError(f"unknown {kind} `{dotted((name,))}`.{nearest(name, known)} Known: {', '.join(known) or 'none'}.")


def explain_validation(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """Turn pydantic's report into one line per problem, with file, field, value and way out."""
    return UserError("\n".join(f"{where}: {text}" for _, text in setting_problems(error, model)))


def setting_problems(
    error: ValidationError, model: type[BaseModel], data: Any = None, place: Callable[[Keys], Keys] = lambda keys: keys
) -> list[tuple[Keys, str]]:
    """(keys, text) of each problem in pydantic's report on `data`; `place` turns their keys into keys of the files."""
    return [_problem(item, model, data, place) for item in error.errors(include_url=False)]


def _problem(
    item: dict[str, Any], model: type[BaseModel], data: Any, place: Callable[[Keys], Keys]
) -> tuple[Keys, str]:
    keys = place(_without_tags(item["loc"], data, may_miss_last=item["type"] == "missing"))
    path = dotted(keys)
    if item["type"] == "extra_forbidden":
        return keys, f"unknown key `{path}`.{nearest(str(keys[-1]), _field_names(model))}"
    if item["type"] == "missing":
        return keys, f"`{path}` is missing."
    value = item.get("input")
    found = f" (found {shown(value)})" if not isinstance(value, dict | list | BaseModel) else ""
    at = f"`{path}`: " if keys else ""
    return keys, f"{at}{item['msg'].removeprefix('Value error, ')}{found}."


def _without_tags(location: Keys, data: Any, *, may_miss_last: bool) -> Keys:
    """The keys of a location: pydantic adds the member of a union that it tried, and `[key]` for a name."""
    keys: list[str | int] = []
    for number, part in enumerate(location, start=1):
        is_tag = isinstance(data, Mapping) and part not in data and not (may_miss_last and number == len(location))
        if part != "[key]" and not is_tag:
            keys.append(part)
            data = data[part] if isinstance(data, Mapping) and part in data else None
    return tuple(keys)


def dotted(keys: Keys) -> str:
    """`a.b.0`; a key that is empty, very long or no text as Python writes it."""
    return ".".join(key if isinstance(key, str) and 0 < len(key) <= _SHOWN_CHARACTERS else shown(key) for key in keys)


def shown(value: object) -> str:
    """A value as a message repeats it: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"


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
