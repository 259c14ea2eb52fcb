"""Where every checkpoint came from, recovered from the MLflow store alone: no artifact is read.

data set -> run -> checkpoint        inputs of the run, then its outputs
base model -> run                    input of the run
checkpoint -> next checkpoint        parameter `parent`
recipe                               spec.json, a file of the run; its digest is the key
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.tracking.place import Place


@dataclass(frozen=True)
class Lineage:
    """Origin of one checkpoint. Artifacts are `stage/key`, models `stage/key@step`, digests 64 hex digits."""

    artifact: str
    step: int
    sha256: str
    recipe: dict[str, Any]
    seed: int
    commit: str | None
    parent: str
    base_model: str
    dataset: str
    dataset_sha256: str


def checkpoints(place: Place) -> list[Lineage]:
    """The origin of every checkpoint in the store, by artifact and step."""
    from selfdistill.tracking.index import Index

    index = Index(place, place.uri)
    models = {model.model_id: name for name, model in index.models.items()}
    found = []
    for tracked in index.tracked.values():
        if tracked.run.data.tags["stage"] != "train":
            continue
        run = index.client.get_run(tracked.run.info.run_id)
        outputs = [index.models[models[output.model_id]] for output in run.outputs.model_outputs]
        made = [model for model in outputs if model.model_type == "checkpoint"]
        if not made:
            continue  # unfinished
        base = next(models[used.model_id] for used in run.inputs.model_inputs)
        trained_on = next(use.dataset for use in run.inputs.dataset_inputs if use.tags[0].value == "training")
        profile = json.loads(trained_on.profile)
        recipe = _recipe(index, run.info.run_id)
        found += [
            Lineage(
                artifact=run.data.tags["artifact"],
                step=int(model.params["step"]),
                sha256=model.params["sha256"],
                recipe=recipe,
                seed=int(model.params["seed"]),
                commit=model.params.get("commit"),
                parent=model.params["parent"],
                base_model=base.split("@")[0],
                dataset=profile["artifact"],
                dataset_sha256=profile["manifest_sha256"],
            )
            for model in made
        ]
    return sorted(found, key=lambda lineage: (lineage.artifact, lineage.step))


def _recipe(index: Any, run_id: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = index.client.download_artifacts(run_id, "spec.json", folder)
        return json.loads(Path(path).read_text(encoding="utf-8"))
