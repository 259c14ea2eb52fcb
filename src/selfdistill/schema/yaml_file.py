"""Reading YAML: one loader for every settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from selfdistill.schema.errors import UserError, shown

#: Settings are nested four or five levels deep; libyaml ends the process at some ten thousand.
_MOST_LEVELS = 100


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """In YAML a repeated key silently replaces the first one; here it is an error, and every error has its line."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise _error(f"key `{key.value}` appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            # PyYAML lets these through for a month 13, a number of 5,000 digits, `!!int` of nothing, ...
            kind = node.tag.rpartition(":")[2]
            raise _error(f"{shown(node.value)} cannot be read as {kind} ({error})", node.start_mark) from None


def _error(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _load(text: str) -> Any:
    """The content of a YAML file; yaml.YAMLError if it is none, also where PyYAML would crash or recurse forever."""
    levels: list[str | None] = []
    for event in yaml.parse(text, Loader=_UniqueKeys):
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append(event.anchor)
            if len(levels) > _MOST_LEVELS:
                raise _error(f"it is nested more than {_MOST_LEVELS} levels deep", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
        elif isinstance(event, yaml.AliasEvent) and event.anchor in levels:
            raise _error(f"`*{event.anchor}` contains itself", event.start_mark)
    return yaml.load(text, Loader=_UniqueKeys)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file, empty for an empty file.

    UserError with the line if the file is no YAML, repeats a key or holds something else; also if it cannot be read.
    """
    try:
        content = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}{_line(error)} is not valid YAML: {_problem(error)}.") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path} must hold keys with values, not {type(content).__name__} {str(content)[:40]!r}.")
    return content or {}


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}," if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, in one line; for an unclosed bracket also where it was opened."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    begun = f" ({error.context} in line {error.context_mark.line + 1})" if error.context and error.context_mark else ""
    return f"{error.problem}{begun}"
