"""What all entries of config/config.yaml have."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from selfdistill.schema.base import Model


def _or_like(schema: dict[str, Any]) -> None:
    """In the JSON schema, an entry that says `like` may leave out anything, in its mappings as well."""
    whole = {key: value for key, value in schema.items() if key != "title"}
    partial = {name: {"description": field["description"]} if "description" in field else {}
               for name, field in schema["properties"].items()}  # fmt: skip
    changed = {"type": "object", "properties": partial, "additionalProperties": False, "required": ["like"]}
    schema.clear()
    schema["anyOf"] = [whole, changed]


class Entry(Model):
    """An entry that can say what it is like (`selfdistill.plan.inheritance`)."""

    model_config = ConfigDict(json_schema_extra=_or_like)

    like: str | None = Field(
        None, description="An entry of this section or of `bases`: what is not said here is as it is there."
    )
