"""Two makings of the same artifacts compared: bytes, metrics, and what differs between the machines and the code.

Files are compared by their bytes as they are now, not by what the manifest says of them. metrics.jsonl holds seconds
and memory, so it is compared value by value without these.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfdistill.artifacts.lineage import last_attempt
from selfdistill.artifacts.store import Artifact
from selfdistill.files import sha256_file
from selfdistill.schema.stages import STAGES

_METRICS = "metrics.jsonl"
#: Values that measure the machine, not the result.
_COST = re.compile(r"seconds|per_second|memory")


@dataclass
class Difference:
    """How one artifact differs from its second making."""

    name: str
    files: list[str] = field(default_factory=list)
    #: Value -> (recorded, again), for values that are not equal.
    values: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def is_equal(self) -> bool:
        return not self.files and not self.values

    @property
    def largest(self) -> float:
        """The largest relative difference of any value; infinite where one is missing or is no number."""
        return max((_relative(*pair) for pair in self.values.values()), default=0.0)


def compare(recorded: Artifact, again: Artifact) -> Difference:
    """Files and values of two makings of one artifact."""
    difference = Difference(recorded.name, values=_differing(_values(recorded), _values(again)))
    for name in sorted((set(_files(recorded)) | set(_files(again))) - {_METRICS}):
        one, other = recorded.folder / name, again.folder / name
        if not one.is_file() or not other.is_file():
            difference.files.append(f"{name} is only in {'the new' if other.is_file() else 'the recorded'} artifact")
        elif one.stat().st_size != other.stat().st_size or sha256_file(one) != sha256_file(other):
            difference.files.append(f"{name} differs{_since_sealed(recorded, name)}")
    return difference


def is_on_gpu(*artifacts: Artifact) -> bool:
    """Whether one of these was made on a GPU, where equal bytes cannot be expected."""
    return any(last_attempt(a.folder).get("runtime", {}).get("device") == "cuda" for a in artifacts)


def circumstances(recorded: Artifact, again: Artifact) -> Iterator[str]:
    """One line for each thing that differs between the two makings: code, libraries, hardware, settings, data."""
    old, new = last_attempt(recorded.folder), last_attempt(again.folder)
    version, present = recorded.frozen_spec["version"], STAGES[recorded.stage].VERSION
    if version != present:
        yield f"code: the spec is of version {version} of this stage, this program has version {present}"
    for title, names in (("code", ("commit", "dirty")), ("libraries", ("python", "libraries", "packages", "locks")),
                         ("hardware", ("platform", "devices")), ("container", ("container",)),
                         ("settings", ("runtime",))):  # fmt: skip
        yield from (f"{title}: {line}" for name in names for line in _changes(name, old.get(name), new.get(name)))
    for role, entry in recorded.manifest["inputs"].items():
        if again.manifest["inputs"].get(role, {}).get("id") != entry["id"]:
            yield f"data: {role} is another artifact"


def _files(artifact: Artifact) -> Iterable[str]:
    return artifact.manifest["files"]


def _since_sealed(artifact: Artifact, name: str) -> str:
    """A remark if the recorded file is not the one that was sealed: then the reproduction may well be right."""
    entry = artifact.manifest["files"].get(name)
    is_intact = entry is not None and sha256_file(artifact.folder / name) == entry["sha256"]
    return "" if is_intact else " (the recorded file was changed after it was sealed: selfdistill verify)"


def _values(artifact: Artifact) -> dict[str, Any]:
    """Summary and metrics by name, without costs."""
    found = {name: value for name, value in _flat("summary", artifact.summary) if not _COST.search(name)}
    for number, line in enumerate(_lines(artifact.metrics), start=1):
        values = json.loads(line)
        step = values.get("step", number)
        found |= {f"step {step} {n}": value for n, value in values.items() if n != "step" and not _COST.search(n)}
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flat(f"{name}.{key}", entry)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _flat(f"{name}[{index}]", entry)
    else:
        yield name, value


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*old, *(name for name in new if name not in old)]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _relative(old: Any, new: Any) -> float:
    numbers = [value for value in (old, new) if isinstance(value, int | float) and math.isfinite(value)]
    if len(numbers) < 2:
        return math.inf
    return abs(old - new) / max(abs(old), abs(new))


def _changes(name: str, old: Any, new: Any) -> Iterator[str]:
    before, after = dict(_flat(name, old)), dict(_flat(name, new))
    for field_name, (one, other) in _differing(before, after).items():
        yield f"{field_name} {_shown(one)} -> {_shown(other)}"


def _shown(value: Any) -> str:
    return "not recorded" if value is None else str(value)[:60]
