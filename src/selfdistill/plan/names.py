"""Names that people use for an artifact: its experiments, seed, and benchmark or context.

Planning writes them beside the spec (names.json) until the artifact is finished, and each job copies them to its
provenance. So a result keeps the names under which it was made, whatever the config says later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfdistill.artifacts.provenance import NAMES_FILE
from selfdistill.files import pretty_json, write_if_changed

_ROLES = ("train_artifact", "evaluate_artifact", "epistemics_artifact", "rollouts_artifact")
_FIELDS = ("model", "seed", "benchmark", "domain", "context")


class Names:
    """Names by artifact (`stage/slug-key`), collected from the rows of plans.

    Of an artifact that several rows mention, the first row gives seed, benchmark and context, and all give experiments.
    """

    def __init__(self) -> None:
        self.by_artifact: dict[str, dict[str, Any]] = {}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> set[str]:
        """Artifacts that the rows mention."""
        mentioned: set[str] = set()
        for row in rows:
            given = {field: row[field] for field in _FIELDS if row.get(field) is not None}
            for artifact in {row[role] for role in _ROLES if row.get(role)}:
                names = self.by_artifact.setdefault(artifact, {**given, "experiments": []})
                if "experiment" in row:
                    names["experiments"] = sorted({*names["experiments"], row["experiment"]})
                mentioned.add(artifact)
        return mentioned

    def write(self, root: Path, artifacts: Iterable[str]) -> None:
        """Write names.json of each artifact that is not finished; it is not flushed, as it can be planned again."""
        for artifact in artifacts:
            folder = root / artifact
            # A finished artifact whose manifest was lost is restored from its seal, with the names it has.
            if not any((folder / name).is_file() for name in ("manifest.json", ".sealed.json")):
                write_if_changed(folder / NAMES_FILE, pretty_json(self.by_artifact[artifact]), durable=False)
