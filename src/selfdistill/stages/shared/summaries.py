"""What the stages that sample from a finished model read, and what they say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from selfdistill.artifacts.store import Artifact
from selfdistill.artifacts.tables import read_rows

#: The columns that `describe` needs.
DESCRIBED = ("step", "outcome", "reward", "completion_tokens", "stop_reason")


def describe(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a summary says of rollouts; everything that can go wrong silently is a number here."""
    n = len(rows)
    outcomes = Counter(row["outcome"] for row in rows)
    return {
        "completions": n,
        "mean_reward": sum(row["reward"] for row in rows) / n,
        "mean_tokens": sum(row["completion_tokens"] for row in rows) / n,
        "truncation_rate": sum(row["stop_reason"] == "length" for row in rows) / n,
        "outcomes": {name: outcomes.get(name, 0) for name in ("correct", "wrong", "unparsed", "timeout")},
    }


def read_prompts(artifact: Artifact) -> list[dict[str, Any]]:
    return read_rows(artifact.input("prompts").payload / "prompts.parquet")
