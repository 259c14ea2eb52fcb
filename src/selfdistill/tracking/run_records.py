"""One MLflow run per artifact, as plain data: what the run should hold, decided by the files alone.

MLflow cannot take back a number, a parameter or an input. So a run consists of what never changes (`fixed`), of what
is only added (lines of metrics.jsonl, and `parts`), and of what can be set again (name, tags, status, files). If
something of the first two kinds is not as it was written, the run is deleted and written again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from selfdistill.files import sha256_bytes, sha256_text
from selfdistill.tracking.attachments import Samples
from selfdistill.tracking.survey import PROJECTION

#: MLflow's limits in characters; a longer text is cut visibly and stays whole in spec.json, a file of the run.
MOST_PARAM, MOST_TAG, MOST_NAME = 6000, 8000, 250
#: MLflow's digests of data sets have at most 36 characters; the whole one is in the profile.
DATASET_DIGEST = 32
#: Digests of parts are short, because those of all evaluations of a run share one tag.
PART_DIGEST = 8
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
        return sha256_bytes(self.content)

    def continues(self, size: int, sha256: str) -> bool:
        """True if the first `size` bytes are those of an earlier reading."""
        return size <= self.size and sha256_bytes(self.content[:size]) == sha256

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
class Part:
    """Numbers and models that come to a run at once, and never change: its own result, or that of an evaluation."""

    sha256: str
    scalars: tuple[Scalar, ...] = ()
    models: tuple[ModelRecord, ...] = ()

    @classmethod
    def of(cls, scalars: Iterable[Scalar], models: Iterable[ModelRecord] = ()) -> Part:
        scalars, models = tuple(scalars), tuple(models)
        return cls(_digest([scalars, [asdict(model) for model in models]])[:PART_DIGEST], scalars, models)


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
    datasets: tuple[DatasetUse, ...] = ()
    #: Models (`stage/key@step`) that were run.
    uses: tuple[str, ...] = ()
    #: By the id of the artifact that they come from.
    parts: dict[str, Part] = field(default_factory=dict)
    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    metrics: MetricsLog | None = None
    samples: Samples | None = None

    @property
    def links(self) -> set[str]:
        """Artifacts whose models this run used."""
        return {model.split("@")[0] for model in self.uses}

    @property
    def measures(self) -> set[str]:
        """Artifacts on whose models this run writes numbers."""
        scalars = (scalar for part in self.parts.values() for scalar in part.scalars)
        return {scalar.model.split("@")[0] for scalar in scalars if scalar.model}

    @property
    def edges(self) -> dict[str, list[str]]:
        """Links and measures as the run's mark holds them."""
        return {"links": sorted(self.links), "measures": sorted(self.measures)}

    @property
    def progress(self) -> dict[str, Any]:
        """What of a run only grows: bytes of metrics.jsonl read (and their digest), and parts."""
        log = self.metrics
        parts = {name: part.sha256 for name, part in self.parts.items()}
        return {"read": [log.size, log.sha256] if log else [0, ""], "parts": parts}

    @cached_property
    def fixed(self) -> str:
        inputs = [asdict(use) for use in self.datasets]
        return _digest([PROJECTION, self.id, self.group, self.started_ms, self.params, inputs, self.uses])

    @cached_property
    def files_sha256(self) -> str:
        return _digest({name: sha for name, (_, sha) in self.files.items()})

    @cached_property
    def digest(self) -> str:
        """Moves when anything of the run has to be written."""
        parts = {name: part.sha256 for name, part in self.parts.items()}
        read = self.metrics.sha256 if self.metrics else ""
        state = [self.name, self.status, self.finished_ms, self.tags, self.files_sha256, read]
        return _digest([self.fixed, parts, state])

    def continues(self, mark: dict[str, Any]) -> bool:
        """True if what was written of this run, according to its mark, is the beginning or all of the record."""
        if mark.get("fixed") != self.fixed:
            return False
        if any(name not in self.parts or self.parts[name].sha256 != sha for name, sha in mark["parts"].items()):
            return False
        return self.metrics is None or self.metrics.continues(*mark["read"])


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


def numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested dict, by dotted name; what is no number is not a metric."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", float(value)


def _digest(value: Any) -> str:
    return sha256_text(json.dumps(value, sort_keys=True))
