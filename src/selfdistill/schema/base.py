"""The base of every model: strict, immutable, and able to say what of it belongs to an identity.

`identity()` is what enters a spec: all validated fields, except those that still equal a frozen
`Since(default)`. A field added to a stage after its first release is declared with `Since`, so that
artifacts made before it keep their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticUndefined


@dataclass(frozen=True)
class Since:
    """Marks a field that was added later: left out of the identity while it equals `default`."""

    default: Any


class Model(BaseModel):
    """Errors: unknown keys, NaN, infinities, booleans as numbers, integers beyond 64 bits. Instances never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _has_plain_numbers(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, Mapping) else ():
            if isinstance(value, int | list | tuple | Mapping) and name in cls.model_fields:
                _check_numbers(name, value, cls.model_fields[name].annotation)
        return data

    def values_of(self, shared: type[Model]) -> dict[str, Any]:
        """The values of the fields that a base class declares."""
        return {name: getattr(self, name) for name in shared.model_fields}

    def identity(self) -> dict[str, Any]:
        """The hashed form: JSON types only, no negative zero, later fields left out at their frozen default."""
        return _identity(self)


class Spec(Model):
    """Part of a stage's spec: every field must be stated, so that no default enters a key unseen.

    Defaults of a base class that it shares with a config entry do not hold here; those of `Since` do.
    """

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        # In time: with defer_build, validation is built from the fields on first use.
        for field in cls.model_fields.values():
            if not any(isinstance(mark, Since) for mark in field.metadata):
                field.default = PydanticUndefined


def _check_numbers(name: str, value: Any, annotation: Any) -> None:
    """ValueError with the field's name for a boolean where a number is expected (Python takes it for 0 or 1), and for
    an integer that other languages, files and libraries cannot hold."""
    options = _options(annotation)
    if isinstance(value, bool) and bool not in options and {int, float} & set(options):
        raise ValueError(f"{name} must be a number, not {str(value).lower()}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be a number of at most 64 bits")
    if isinstance(value, Mapping):
        for items in (get_args(option)[1] for option in options if get_origin(option) is dict):
            for item in value.values():
                _check_numbers(name, item, items)
    elif isinstance(value, list | tuple):
        for items in (get_args(option)[0] for option in options if get_origin(option) in (list, tuple)):
            for item in value:
                _check_numbers(name, item, items)


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union (one for another type), without what is annotated to them."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(option for part in get_args(annotation) for option in _options(part))
    return (annotation,)


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
    if isinstance(value, float):
        return value + 0.0  # -0.0 is 0.0.
    if isinstance(value, dict):
        return {str(key): _identity(item) for key, item in value.items()}
    return value
