"""Differences between two specs, field by field, and the existing artifact that is nearest to a planned one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.artifacts.store import Artifact
from selfdistill.plan.graph import Node


@dataclass(frozen=True)
class Change:
    """One field: its path in the spec, the value of the existing artifact, the planned value."""

    field: str
    existing: Any
    planned: Any


_ABSENT = "(absent)"


def diff(existing: dict[str, Any], planned: dict[str, Any]) -> list[Change]:
    """All fields whose values differ; a field that only one side has is `(absent)` on the other."""
    return list(_walk(existing, planned, ""))


def _walk(existing: Any, planned: Any, path: str) -> Iterator[Change]:
    if isinstance(existing, dict) and isinstance(planned, dict):
        for name in sorted({*existing, *planned}):
            yield from _walk(existing.get(name, _ABSENT), planned.get(name, _ABSENT), f"{path}.{name}".lstrip("."))
    elif existing != planned:
        yield Change(path, existing, planned)


@dataclass(frozen=True)
class Explanation:
    """Why a planned artifact would be computed: the nearest sealed artifact of the same slug, and the differences."""

    node: Node
    nearest: Artifact | None
    changes: list[Change]


def explain(nodes: list[Node], root: Path) -> list[Explanation]:
    """One explanation for each node without a result, upstream first."""
    return [_explain(node, root) for node in nodes if not Artifact(node.folder(root)).is_sealed]


def _explain(node: Node, root: Path) -> Explanation:
    neighbours = [
        artifact
        for artifact in map(Artifact, sorted((root / node.stage).glob(f"{node.slug}-*")))
        if artifact.slug == node.slug and artifact.key != node.key and artifact.is_sealed
    ]
    changes = {artifact.name: diff(artifact.frozen_spec, node.frozen_spec) for artifact in neighbours}
    nearest = min(neighbours, key=lambda artifact: len(changes[artifact.name]), default=None)
    return Explanation(node, nearest, changes[nearest.name] if nearest else [])
