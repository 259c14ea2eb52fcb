"""Lineage: what something was made from, back to data and base model, what was made from it, and who made it.

One set of functions for planned nodes, artifacts on disk and entries of a survey. They need three things: an `id`
(`stage/key`), `input_ids` (role -> id), and `upstream(role)`, which gives the input itself.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from selfdistill.files import with_digest

#: Stages that make a base model, and those that make a table of problems.
BASE_STAGES = ("model", "pretrain")
PROBLEM_STAGES = ("dataset", "sample", "select")
#: Roles of inputs that lead to the base model, or to the problems; the first one that an artifact has is followed.
TOWARDS_MODEL = ("model", "rollouts", "unguided", "examples", "prompts")
TOWARDS_PROBLEMS = ("problems", "prompts", "examples", "rollouts", "unguided")
PROVENANCE_FILE = "provenance.json"


class HasInputs(Protocol):
    """A planned or finished artifact, as far as lineage is concerned."""

    @property
    def stage(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def input_ids(self) -> Mapping[str, str]: ...

    def upstream(self, role: str) -> Any:
        """The input of a role; None if it is not known here."""


Item = TypeVar("Item", bound=HasInputs)


def follow(item: Item | None, roles: Iterable[str]) -> Item | None:
    """One step upstream, along the first of these roles that the item has; None where the path ends."""
    role = next((r for r in roles if item is not None and r in item.input_ids), None)
    return None if item is None or role is None else item.upstream(role)


def nearest(item: Item | None, roles: Collection[str], stages: Collection[str]) -> Item | None:
    """The first item of these stages along these roles, the item itself included; None if there is none."""
    while item is not None and item.stage not in stages:
        item = follow(item, roles)
    return item


def base_model(item: Item | None) -> Item | None:
    """The base model that an item belongs to, itself included; None for data."""
    return nearest(item, TOWARDS_MODEL, BASE_STAGES)


def trained_model(item: Item | None) -> Item | None:
    """The training run that an item belongs to, itself included; None for data and for what a base model made."""
    return nearest(item, TOWARDS_MODEL, ("train",))


def base_slug(item: Any) -> str:
    """Slug of the base model that an item belongs to: its name in config/runtime.yaml. Empty for data."""
    base = base_model(item)
    return base.slug if base is not None else ""


def closure(items: Iterable[Item]) -> Iterator[Item]:
    """The items and everything upstream of them, upstream first, each once."""
    seen: set[str] = set()

    def visit(item: Item) -> Iterator[Item]:
        if item.id in seen:
            return
        seen.add(item.id)
        for role in item.input_ids:
            upstream = item.upstream(role)
            if upstream is not None:
                yield from visit(upstream)
        yield item

    for item in items:
        yield from visit(item)


def descendants(items: Iterable[Item], everything: Iterable[Item]) -> list[Item]:
    """What of `everything` was made from these items, directly or not; the nearest first."""
    made_from: dict[str, list[Item]] = defaultdict(list)
    for item in everything:
        for upstream in item.input_ids.values():
            made_from[upstream].append(item)
    found: dict[str, Item] = {}
    waiting = [item.id for item in items]
    for name in waiting:  # Grows while it is read.
        new = {item.id: item for item in made_from[name] if item.id not in found}
        found |= new
        waiting += new
    return list(found.values())


def provenance_path(folder: Path, shard: str = "") -> Path:
    """The record of an artifact's attempts, or of those of one shard of it (`2-of-8`)."""
    return folder / (f"provenance-{shard}.json" if shard else PROVENANCE_FILE)


def read_attempts(path: Path) -> list[dict[str, Any]]:
    """The attempts in a provenance.json, the oldest first; none if it is missing or damaged."""
    try:
        return parse_attempts(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return []


def parse_attempts(text: str) -> list[dict[str, Any]]:
    """The attempts in the text of a provenance.json; none if it is damaged."""
    try:
        found = json.loads(text)["attempts"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(attempt, dict) for attempt in found) else []


def record_text(attempts: list[dict[str, Any]]) -> str:
    """The text of a provenance.json: the attempts, and the digest by which damage to them is found."""
    return with_digest("attempts", attempts)


def damage_to_record(path: Path) -> str | None:
    """What is wrong with a provenance.json; None if it is intact, or was written before records had digests."""
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
        if set(record) == {"attempts"}:
            return None if parse_attempts(text) else "is damaged"
        return None if text == record_text(record["attempts"]) else "has changed"
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "is damaged"


def has_digest(path: Path) -> bool:
    """Whether an intact provenance.json carries a digest: those written before records had one do not."""
    return "sha256" in json.loads(path.read_text(encoding="utf-8"))


def sealed_manifest(attempts: list[dict[str, Any]]) -> str | None:
    """Digest of the manifest that the last attempt to seal wrote; None where no attempt recorded one."""
    return next((a["manifest"] for a in reversed(attempts) if isinstance(a.get("manifest"), str)), None)


def last_attempt(folder: Path) -> dict[str, Any]:
    """The attempt that sealed an artifact, or the latest one so far; empty if there is no record."""
    return next(reversed(read_attempts(provenance_path(folder))), {})


def current_attempts(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Attempts at the present result: those after the last earlier seal (an artifact may be discarded and remade)."""
    earlier = [index for index, attempt in enumerate(attempts[:-1]) if attempt.get("sealed")]
    return attempts[earlier[-1] + 1 :] if earlier else attempts
