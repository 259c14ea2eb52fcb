"""One MLflow run per artifact, as plain data: what the run should hold, decided by the files alone.

`fixed` digests what MLflow cannot change or take back (parameters, inputs, models, numbers): if it moves, the run is
written anew. Everything else (name, tags, status, new metrics) is brought up to date in place.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from selfdistill.files import sha256_text
from selfdistill.tracking.metrics import MetricsLog, Scalar
from selfdistill.tracking.survey import PROJECTION

#: MLflow's limits in characters; a longer text is cut visibly and stays whole in spec.json, a file of the run.
MOST_PARAM, MOST_TAG, MOST_NAME = 6000, 8000, 250
#: MLflow's digests of data sets have at most 36 characters; the whole one is in the profile.
DATASET_DIGEST = 32
VIEWS_ID = "views/results"
#: Every tag that a run may get from here, or got from an earlier version (recipe_sha256); any other tag is a person's,
#: and stays.
OUR_TAGS = frozenset(
    {
        *("artifact", "stage", "key", "slug", "spec_sha256", "recipe_sha256", "manifest_sha256"),
        *("parents", "location"),
        *("started", "finished", "attempts", "commit", "dirty", "host"),
        *("dataset", "model", "method", "seed", "experiment", "experiments", "benchmark", "domain", "step"),
        *("mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit"),
    }
)


@dataclass(frozen=True)
class DatasetUse:
    """A problem table behind a run."""

    name: str
    id: str
    sha256: str
    location: str
    context: str
    summary: dict[str, Any]

    @property
    def digest(self) -> str:
        return self.sha256[:DATASET_DIGEST]


@dataclass(frozen=True)
class ModelRecord:
    """Weights that exist as a folder: a base model (step 0) or a checkpoint. `params` never change, `tags` may."""

    id: str
    name: str
    kind: str
    step: int
    params: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True)
class Baseline:
    """Scores of the base model (artifact `id`, step 0) in the evaluation of a run, shown on the runs it is base of."""

    id: str
    manifest_sha256: str
    scalars: tuple[Scalar, ...]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """What the run of one artifact should hold."""

    id: str
    group: str
    name: str
    status: str
    started_ms: int
    finished_ms: int | None
    params: dict[str, str]
    tags: dict[str, str]
    manifest_sha256: str | None = None
    datasets: tuple[DatasetUse, ...] = ()
    uses: tuple[str, ...] = ()
    makes: tuple[ModelRecord, ...] = ()
    scalars: tuple[Scalar, ...] = ()
    baseline: Baseline | None = None
    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    metrics: MetricsLog | None = None

    @property
    def links(self) -> set[str]:
        """Artifacts that this run speaks of: makers of its models, the evaluation it is compared with."""
        compared = {self.baseline.id} if self.baseline else set()
        return compared | {model.split("@")[0] for model in self.uses}

    @property
    def measures(self) -> set[str]:
        """Artifacts on whose models and runs this run's numbers are shown too."""
        return {scalar.model.split("@")[0] for scalar in self.scalars if scalar.model}

    @property
    def shown_under(self) -> str:
        """The data set of an evaluation: prefix of its numbers on the run that made the model."""
        return self.datasets[0].name

    @cached_property
    def fixed(self) -> str:
        inputs = [asdict(use) for use in self.datasets]
        return _digest([PROJECTION, self.id, self.group, self.started_ms, self.params, inputs, self.uses])

    @cached_property
    def result(self) -> str:
        """Digest of what a sealed artifact adds, and never changes; empty before."""
        if self.manifest_sha256 is None:
            return ""
        models = [asdict(replace(model, tags={})) for model in self.makes]
        return _digest([self.manifest_sha256, models, self.scalars])

    @cached_property
    def compared(self) -> str:
        """Digest of the base model's scores; empty while they are not known: they may come later."""
        return _digest(asdict(self.baseline)) if self.baseline else ""

    @cached_property
    def files_sha256(self) -> str:
        return _digest({name: sha for name, (_, sha) in self.files.items()})

    @cached_property
    def digest(self) -> str:
        """Moves when anything of the run has to be written."""
        models = [model.tags for model in self.makes]
        read = self.metrics.sha256 if self.metrics else ""
        state = [self.name, self.status, self.finished_ms, self.tags, models, self.files_sha256, read]
        return _digest([self.fixed, self.result, self.compared, state])


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """A spec as MLflow parameters: dotted names, texts as they are, the rest as JSON."""
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for name, item in value.items():
            flat |= flatten(item, f"{prefix}.{name}" if prefix else str(name))
        return flat
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {legal(prefix): fit(text, MOST_PARAM)}


def fit(text: str, limit: int) -> str:
    """The text, or its beginning with the digest of the whole and where that is."""
    if len(text) <= limit:
        return text
    note = f" ... [{len(text)} characters, sha256 {sha256_text(text)}, whole in spec.json]"
    return text[: limit - len(note)] + note


def legal(name: str) -> str:
    """A name that MLflow takes; names that had to be changed keep a digest, so that no two become one."""
    allowed = re.sub(r"[^\w\-. :/]", "_", name)
    if allowed == name and len(name) <= MOST_NAME:
        return name
    return f"{allowed[: MOST_NAME - 10]}-{sha256_text(name)[:8]}"


def model_name(text: str) -> str:
    """MLflow's model names have no dots, colons, slashes, percent signs or quotes."""
    return re.sub(r"[/:.%\"']", "_", text)


def views_record(results: Path, views: dict[str, str], started_ms: int) -> Record:
    """The run that holds the tables and the report; each file is replaced when its digest changes."""
    return Record(
        id=VIEWS_ID,
        group="results",
        name="tables and report",
        status="FINISHED",
        started_ms=started_ms,
        finished_ms=max(int((results / name).stat().st_mtime * 1000) for name in views),
        params={},
        tags={"artifact": VIEWS_ID, "stage": "views"},
        files={name: (str(results / name), sha) for name, sha in views.items()},
    )


def _digest(value: Any) -> str:
    return sha256_text(json.dumps(value, sort_keys=True))
