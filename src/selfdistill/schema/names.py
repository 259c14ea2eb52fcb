"""Types of the settings' fields that pydantic lacks: names, paths inside a folder, lists without repeats, counts."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
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


def _is_asset_name(name: str) -> str:
    """Names of assets become folders below resources/."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is None:
        raise ValueError(
            "the name of an asset has only letters, digits, _, . and -, and starts with a letter, a digit or _"
        )
    return name


def _is_inside(path: str) -> str:
    """Who writes a file of an asset to its folder must not write anywhere else."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or path.startswith("-") or not path.isprintable() or "\\" in path:
        raise ValueError("must be a path inside the asset, such as data/train.parquet: relative, with no `..`")
    return path


def _has_no_repeats(items: list[Any]) -> list[Any]:
    if repeated := [item for item in items if items.count(item) > 1]:
        raise ValueError(f"holds {repeated[0]} twice")
    return items


Name = Annotated[str, AfterValidator(_is_name), WithJsonSchema({"type": "string", "pattern": NAME})]
AssetName = Annotated[str, AfterValidator(_is_asset_name)]
PathInside = Annotated[str, AfterValidator(_is_inside)]
Distinct = AfterValidator(_has_no_repeats)
Count = Annotated[int, Field(gt=0)]
