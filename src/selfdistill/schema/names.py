"""Types of the config's fields that pydantic lacks: names, lists without repeats, counts."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

NAME = r"^[a-z][a-z0-9_]*$"


def _is_name(name: str) -> str:
    """Names become targets (results/ood/NAME.csv), so nothing that a path or a shell reads otherwise may be in them."""
    if re.fullmatch(NAME, name) is None:
        allowed = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
        proposal = allowed if re.fullmatch(NAME, allowed) else f"x_{allowed}".rstrip("_")
        raise ValueError(
            f"a name has only lower-case letters, digits and _, and starts with a letter. Write `{proposal}`, say"
        )
    return name


def _has_no_repeats(items: list[Any]) -> list[Any]:
    if repeated := [item for item in items if items.count(item) > 1]:
        raise ValueError(f"holds {repeated[0]} twice")
    return items


Name = Annotated[str, AfterValidator(_is_name), WithJsonSchema({"type": "string", "pattern": NAME})]
Distinct = AfterValidator(_has_no_repeats)
Count = Annotated[int, Field(gt=0)]
