"""Whether an artifact has everything that its spec promises: asked before it is sealed."""

from __future__ import annotations

import json
from pathlib import Path

from selfdistill.schema.stages import StageSpec


def what_is_missing(spec: StageSpec, payload: Path, metrics: Path) -> str | None:
    """The first thing that a finished artifact of this spec would have; None if nothing is missing."""
    missing = [name for name in spec.due_payload if not (payload / name).exists()]
    if missing:
        return f"payload/{missing[0]} is missing"
    return _gap(list(spec.due_metrics), metrics) if spec.due_metrics else None


def _gap(due: list[int], path: Path) -> str | None:
    """The first difference between the steps that are due and those of metrics.jsonl."""
    try:
        found = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        return f"{path.name} is damaged ({error})"
    for number, (expected, step) in enumerate(zip(due, found, strict=False), start=1):
        if step != expected:
            return f"line {number} of {path.name} is of step {step}, not {expected}"
    return None if len(found) == len(due) else f"{path.name} has {len(found)} lines for {len(due)} steps"
