"""Reading YAML: one loader for every settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from selfdistill.schema.errors import UserError


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """In YAML a repeated key silently replaces the first one; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key `{key.value}` appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file, empty for an empty file.

    UserError with the line if the file is no YAML, repeats a key or holds something else; also if it is missing.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from None
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
