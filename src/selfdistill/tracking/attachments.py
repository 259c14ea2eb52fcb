"""What hangs on a run besides its numbers: completions to read, and the tables that show it."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.artifacts.tables import read_batches
from selfdistill.tracking.survey import Entry, Survey

#: The table of completions of a run, as `mlflow.log_table` writes it.
SAMPLES_FILE = "samples.json"
#: The first completion of the first problems, at every step: a stated rule, nothing picked.
_PROBLEMS = 20
_MOST_LETTERS = 4000
#: Completions that are read at a time.
_BATCH_ROWS = 1024
_COLUMNS = ("step", "row_id", "problem_id", "answer", "extracted", "outcome", "completion_tokens", "completion")
#: Columns of a table that name artifacts end in this; the first of them that names any says whose table it is.
_ROLE = "_artifact"


@dataclass(frozen=True)
class Samples:
    """Completions of an artifact, read from its tables when they are written to MLflow."""

    rollouts: Path
    prompts: Path

    @classmethod
    def of(cls, entry: Entry) -> Samples | None:
        """None for an artifact that holds no completions, or is not finished."""
        prompts, rollouts = entry.upstream("prompts"), entry.artifact.payload / "rollouts.parquet"
        if not entry.manifest_sha256 or prompts is None or not rollouts.is_file():
            return None
        return cls(rollouts, prompts.artifact.payload / "prompts.parquet")

    def read(self) -> dict[str, list[Any]]:
        """Columns of the table. UserError where a table is damaged, FileNotFoundError where it is missing."""
        import pyarrow.compute as pc

        first = next(read_batches(self.prompts, ("row_id", "question"), _PROBLEMS), None)
        asked = {row["row_id"]: row["question"] for row in first.to_pylist()} if first is not None else {}
        chosen = (pc.field("sample") == 0) & pc.field("row_id").isin(list(asked))
        batches = read_batches(self.rollouts, ("sample", *_COLUMNS), _BATCH_ROWS)
        rows = [row for batch in batches for row in batch.filter(chosen).to_pylist()]
        rows = [{"question": asked[row["row_id"]], **row} for row in rows]
        return {name: [_shorten(row[name]) for row in rows] for name in ("question", *_COLUMNS) if name != "row_id"}


def tables_of_runs(survey: Survey) -> dict[str, dict[str, tuple[str, str]]]:
    """By artifact (`stage/slug-key`): the tables that show it, as name -> (path, digest).

    A table belongs to the training runs that its rows name; a table that names none, to the completions it counts.
    """
    found: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for name, sha in survey.views.items():
        for artifact in _subjects(survey.results / name) if name.endswith(".csv") else ():
            found[artifact][f"tables/{name}"] = (str(survey.results / name), sha)
    return found


def _subjects(path: Path) -> set[str]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    roles = [column for column in rows[0] if column.endswith(_ROLE)] if rows else []
    named = [{name for row in rows for name in (row[role] or "").split(";") if name} for role in roles]
    trained = {name for names in named for name in names if name.startswith("train/")}
    return trained or next((names for names in named if names), set())


def _shorten(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MOST_LETTERS:
        return f"{value[:_MOST_LETTERS]} ... [{len(value)} characters]"
    return value
