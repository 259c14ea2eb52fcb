"""metrics.jsonl as MLflow points: read up to the last whole line, thinned by a rule that only the spec decides.

The file grows; after an interruption it is cut back to the saved state and grows again. What was read before is
therefore remembered as (bytes, sha256 of them): if the beginning is still the same, only new lines are written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

#: Most steps of one run that MLflow shows; of a longer run every n-th step is taken.
MOST_STEPS = 1000


class Scalar(NamedTuple):
    """One number of a run; `model` (`stage/key@step`) says which weights it measures."""

    name: str
    value: float
    step: int
    timestamp_ms: int
    model: str | None = None


@dataclass(frozen=True)
class MetricsLog:
    """The whole lines of one metrics.jsonl."""

    content: bytes = field(repr=False)
    started_ms: int
    stride: int

    @classmethod
    def read(cls, path: Path, *, started_ms: int, steps: int | None) -> MetricsLog:
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        return cls(whole, started_ms, max(1, math.ceil((steps or 1) / MOST_STEPS)))

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def continues(self, size: int, sha256: str) -> bool:
        """True if the first `size` bytes are those of an earlier reading."""
        return size <= self.size and hashlib.sha256(self.content[:size]).hexdigest() == sha256

    def points(self, after: int = 0) -> Iterator[Scalar]:
        """Numbers of the lines after a byte offset. Their time is the start plus the seconds of the steps so far."""
        offset, now = 0, float(self.started_ms)
        for line in self.content.splitlines(keepends=True):
            offset += len(line)
            row = json.loads(line)
            now += 1000 * row.get("seconds_step", 0.0)
            step = row.pop("step")
            if offset > after and (step % self.stride == 0 or step == 1):
                yield from (Scalar(name, value, step, int(now)) for name, value in numbers(row))


def numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested dict, by dotted name; what is no number is not a metric."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", float(value)
