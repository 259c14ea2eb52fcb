"""Where every checkpoint came from, recovered from the MLflow store alone: no artifact is read.

data set -> run -> checkpoint        inputs of the run, then its outputs
base model -> run                    input of the run
checkpoint -> next checkpoint        parameter `parent`
spec                                 spec.json, a file of the run; its digest is the key
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.tracking import TrackingStore

if TYPE_CHECKING:
    from selfdistill.tracking.index import Index


@dataclass(frozen=True)
class Lineage:
    """Origin of one checkpoint. Artifacts are `stage/key`, models `stage/key@step`, digests 64 hex digits."""

    artifact: str
    step: int
    sha256: str
    frozen_spec: dict[str, Any]
    seed: int
    commit: str | None
    parent: str
    base_model: str
    dataset: str
    dataset_sha256: str


def checkpoints(store: TrackingStore) -> list[Lineage]:
    """The origin of every checkpoint in the store, by artifact and step."""
    from selfdistill.tracking.index import Index

    with Index(store, store.uri) as index:
        trained = [t.run.info.run_id for t in index.tracked.values() if t.run.data.tags["stage"] == "train"]
        found = [lineage for run_id in trained for lineage in _of_run(index, run_id)]
    return sorted(found, key=lambda lineage: (lineage.artifact, lineage.step))


def _of_run(index: Index, run_id: str) -> Iterator[Lineage]:
    run = index.client.get_run(run_id)
    names = {model.model_id: name for name, model in index.models.items()}
    made = [index.models[names[output.model_id]] for output in run.outputs.model_outputs]
    if not made:
        return  # unfinished
    base = next(names[used.model_id] for used in run.inputs.model_inputs)
    profile = json.loads(next(u.dataset.profile for u in run.inputs.dataset_inputs if u.tags[0].value == "training"))
    frozen_spec = _frozen_spec(index, run_id)
    for model in made:
        yield Lineage(
            artifact=run.data.tags["artifact"],
            step=int(model.params["step"]),
            sha256=model.params["sha256"],
            frozen_spec=frozen_spec,
            seed=int(model.params["seed"]),
            commit=model.params.get("commit"),
            parent=model.params["parent"],
            base_model=base.split("@")[0],
            dataset=profile["artifact"],
            dataset_sha256=profile["manifest_sha256"],
        )


def _frozen_spec(index: Index, run_id: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = index.client.download_artifacts(run_id, "spec.json", folder)
        return json.loads(Path(path).read_text(encoding="utf-8"))
