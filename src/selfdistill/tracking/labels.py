"""The names people use for artifacts: experiment, seed, benchmark, context, read from the plans of the views."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROLES = ("train_artifact", "evaluate_artifact", "epistemics_artifact", "rollouts_artifact")


@dataclass
class Label:
    """What the plans say of one artifact."""

    experiments: set[str] = field(default_factory=set)
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def experiment(self) -> str | None:
        """The shortest name, where several experiments share the artifact."""
        return min(self.experiments, key=lambda name: (len(name), name), default=None)

    @property
    def subject(self) -> str | None:
        """`toy_sdpo seed 0`, or the name of the base model."""
        if self.row.get("seed") is None:
            return self.row.get("model")
        return f"{self.experiment} seed {self.row['seed']}"

    def name(self, stage: str) -> str | None:
        """The name of the run of an artifact; None where the plans give it none."""
        if stage in ("train", "pretrain", "model"):
            return self.subject
        words = "words: " if stage == "epistemics" else ""
        if "benchmark" in self.row:
            return f"{words}{self.subject} on {self.row['benchmark']}"
        if "context" in self.row and stage in ("rollouts", "epistemics"):
            return f"{words}{self.row['model']} with context {self.row['context']}"
        return None


def read_labels(plans: Path) -> dict[str, Label]:
    """Labels by artifact name (`stage/slug-key`), from results/plans/*/*/plan.json."""
    labels: dict[str, Label] = defaultdict(Label)
    for path in sorted(plans.glob("*/*/plan.json")):
        for row in json.loads(path.read_text(encoding="utf-8")).get("rows", []):
            for role in _ROLES:
                if row.get(role):
                    label = labels[row[role]]
                    label.experiments |= {row["experiment"]} if "experiment" in row else set()
                    label.row = label.row or row
    return dict(labels)
