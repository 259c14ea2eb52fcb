"""The base of every model: strict, immutable, and able to say what of it belongs to an identity.

`identity()` is what enters a spec: all validated fields, except those that still equal a frozen
`Since(default)`. A field added to a stage after its first release is declared with `Since`, so that
artifacts made before it keep their keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Since:
    """Marks a field that was added later: left out of the identity while it equals `default`."""

    default: Any


class Model(BaseModel):
    """Unknown keys, NaN and infinities are errors; instances never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, defer_build=True)

    def identity(self) -> dict[str, Any]:
        """The hashed form: JSON types only, later fields left out at their frozen default."""
        return _identity(self)


def _identity(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        kept = {}
        for name, field in fields.items():
            item = _identity(getattr(value, name))
            since = next((m for m in field.metadata if isinstance(m, Since)), None)
            if since is None or item != since.default:
                kept[name] = item
        return kept
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _identity(item) for key, item in value.items()}
    return value
