"""Records -> MLflow.

The tag `MARK` of a run says what was written; while that goes on it has no digest. A run found in this
state was interrupted and is written anew, so no half-written run is ever taken for a whole one.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.models.utils import get_external_mlflow_model_spec
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from selfdistill.tracking.database import silence
from selfdistill.tracking.experiments import EXPERIMENTS, VIEW_TAG, methods_view, note
from selfdistill.tracking.metrics import Scalar
from selfdistill.tracking.place import Place
from selfdistill.tracking.records import OUR_TAGS, DatasetUse, ModelRecord, Record

#: Tags of ours that the UI does not show (it hides those of MLflow).
MARK, PROJECT = "mlflow.selfdistill.mark", "mlflow.selfdistill.project"
Texts = Mapping[str, str]
_NO_TEXTS: Texts = MappingProxyType({})
_BATCH, _METRIC_BATCH, _PAGE = 100, 800, 1000


@dataclass(frozen=True)
class Tracked:
    """A run that MLflow has, and what is known to be in it."""

    run: Run
    mark: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        return "digest" in self.mark

    @property
    def links(self) -> set[str]:
        return set(self.mark.get("links", ()))

    @property
    def measures(self) -> set[str]:
        return set(self.mark.get("measures", ()))


class Index:
    """One project's runs and models in one MLflow store."""

    def __init__(self, place: Place, uri: str) -> None:
        silence()
        self.place = place
        self.client = MlflowClient(uri, registry_uri=uri)
        self.experiments = {group: self._experiment(group) for group in EXPERIMENTS}
        self.tracked = {
            run.data.tags["artifact"]: Tracked(run, json.loads(run.data.tags[MARK])) for run in self._runs()
        }
        self.models = {model.tags["id"]: model for model in self._models()}
        self.points = 0

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the database: a kept connection would later write to one that was replaced."""
        engine = getattr(self.client._tracking_client.store, "engine", None)
        if engine is not None:
            engine.dispose()

    def _experiment(self, group: str) -> str:
        name = EXPERIMENTS[group]
        found = self.client.get_experiment_by_name(name)
        if found is None:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            made = self.client.create_experiment(name, self.place.artifact_location(group), tags)
            self.client.set_experiment_tag(made, "mlflow.note.content", note(group, made))
            return made
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def show_methods(self, records: Iterable[Record]) -> None:
        """Keep the view of the training runs (columns: methods, seeds, scores) in step with what was evaluated."""
        training, view = self.experiments["training"], methods_view(records)
        if self.client.get_experiment(training).tags.get(VIEW_TAG) != view:
            self.client.set_experiment_tag(training, VIEW_TAG, view)

    def _runs(self) -> Iterator[Run]:
        token, mine = None, f"tags.`{PROJECT}` = '{self.place.project}'"
        while True:
            page = self.client.search_runs(
                list(self.experiments.values()), mine, ViewType.ACTIVE_ONLY, max_results=_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _models(self) -> Iterator[Any]:
        token, mine = None, f"tags.`{PROJECT}` = '{self.place.project}'"
        while True:
            page = self.client.search_logged_models([self.experiments["training"]], mine, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def remove(self, artifact_id: str) -> dict[str, str]:
        """Delete a run and its models; returns the tags that people gave it, for the run that follows."""
        tracked = self.tracked.pop(artifact_id)
        for name, model in list(self.models.items()):
            if name.split("@")[0] == artifact_id:
                self.client.delete_logged_model(model.model_id)
                del self.models[name]
        self.client.delete_run(tracked.run.info.run_id)
        ours = {PROJECT, MARK, "mlflow.runName", *OUR_TAGS}
        return {name: value for name, value in tracked.run.data.tags.items() if name not in ours}

    def create(self, record: Record, kept: dict[str, str]) -> None:
        """Write a run that MLflow does not have yet."""
        run = self.client.create_run(
            self.experiments[record.group],
            start_time=record.started_ms,
            tags=kept | self._own_tags(record) | {MARK: json.dumps(_edges(record))},
            run_name=record.name,
        )
        inputs = [_dataset_input(use) for use in record.datasets]
        used = [LoggedModelInput(self.models[name].model_id) for name in record.uses]
        if inputs or used:
            self.client.log_inputs(run.info.run_id, datasets=inputs, models=used)
        self._add_results(record, run, {"read": [0], "result": "", "compared": ""})
        self._finish(record, run, files="", params=record.params)

    def extend(self, record: Record) -> None:
        """Bring a run up to date: new metrics, the result of what was unfinished, name, status, tags, files."""
        tracked = self.tracked[record.id]
        run, mark = tracked.run, tracked.mark
        for model in record.makes:
            if model.id in self.models:
                self._update_model_tags(model)
        if any(mark[name] != value for name, value in _progress(record).items()):
            self.client.set_tag(run.info.run_id, MARK, json.dumps(_edges(record)))
            self._add_results(record, run, mark)
        if run.info.run_name != record.name:
            self.client.update_run(run.info.run_id, name=record.name)
        for name in sorted((OUR_TAGS & set(run.data.tags)) - set(record.tags)):
            self.client.delete_tag(run.info.run_id, name)
        self._finish(record, run, files=mark["files"], tags=self._own_tags(record))

    def _add_results(self, record: Record, run: Run, mark: dict[str, Any]) -> None:
        """What a run has got since its mark: lines of metrics, the result of a sealed artifact, scores of its base."""
        points = list(record.metrics.points(mark["read"][0])) if record.metrics else []
        shown: dict[str, list[Scalar]] = defaultdict(list)
        if not mark["result"]:
            for model in record.makes:
                self._create_model(model, run, record)
            points += record.scalars
            for scalar in record.scalars:
                if scalar.model:
                    shown[scalar.model.split("@")[0]].append(scalar)
        if record.baseline and not mark["compared"]:
            for name in record.baseline.runs:
                shown[name] += record.baseline.scalars
        self._log(run.info.run_id, points, record.datasets[0] if record.datasets else None)
        for name, scalars in shown.items():
            named = [s._replace(name=f"{record.shown_under}/{s.name}", model=None) for s in scalars]
            self._log(self.tracked[name].run.info.run_id, named, None)

    def _log(self, run_id: str, points: Sequence[Scalar], dataset: DatasetUse | None) -> None:
        self.points += len(points)
        for some in _batches(points, _METRIC_BATCH):
            self.client.log_batch(run_id, metrics=[self._metric(point, dataset) for point in some])

    def _metric(self, point: Scalar, dataset: DatasetUse | None) -> Metric:
        name, value, step, time, model = point
        if model not in self.models or dataset is None:
            return Metric(name, value, time, step)
        return Metric(name, value, time, step, self.models[model].model_id, dataset.name, dataset.digest)

    def _create_model(self, model: ModelRecord, run: Run, record: Record) -> None:
        """An external model: parameters and digests, no weights. The small file lets it enter the registry."""
        tags = self._model_tags(model) | {"mlflow.model.isExternal": "true"}
        made = self.client.create_logged_model(
            self.experiments[record.group], model.name, run.info.run_id, tags, model.params, model.kind
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "MLmodel"
            get_external_mlflow_model_spec(made).save(str(path))
            self.client.log_model_artifact(made.model_id, str(path))
        self.models[model.id] = self.client.finalize_logged_model(made.model_id, "READY")
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, model.step)])

    def _update_model_tags(self, model: ModelRecord) -> None:
        known, wanted = self.models[model.id], self._model_tags(model)
        for name in sorted((OUR_TAGS & set(known.tags)) - set(wanted)):
            self.client.delete_logged_model_tag(known.model_id, name)
        self.client.set_logged_model_tags(known.model_id, wanted)

    def _finish(
        self, record: Record, run: Run, *, files: str, params: Texts = _NO_TEXTS, tags: Texts = _NO_TEXTS
    ) -> None:
        """Files if their digest moved, status, parameters, tags, and at last the mark that says all of it is there."""
        run_id = run.info.run_id
        if record.files_sha256 != files:
            self._write_files(record, run, is_new=not files)
        if record.status == "FINISHED":
            self.client.set_terminated(run_id, record.status, record.finished_ms)
        elif run.info.status != record.status:
            self.client.update_run(run_id, record.status)
        mark = {
            "digest": record.digest,
            "fixed": record.fixed,
            **_progress(record),
            "files": record.files_sha256,
            **_edges(record),
        }
        *first, last = _batches([Param(*item) for item in params.items()], _BATCH) or [[]]
        for some in first:
            self.client.log_batch(run_id, params=some)
        written = [RunTag(*item) for item in {**tags, MARK: json.dumps(mark, sort_keys=True)}.items()]
        self.client.log_batch(run_id, params=last, tags=written)
        self.tracked[record.id] = Tracked(run, mark)

    def _write_files(self, record: Record, run: Run, *, is_new: bool) -> None:
        repository = get_artifact_repository(run.info.artifact_uri)
        for name, (path, _) in sorted(record.files.items()):
            parent = str(Path(name).parent)
            repository.log_artifact(path, None if parent == "." else parent)
        if not is_new:
            for gone in set(_walk(repository)) - set(record.files):
                repository.delete_artifacts(gone)

    def _own_tags(self, record: Record) -> dict[str, str]:
        return record.tags | {PROJECT: self.place.project}

    def _model_tags(self, model: ModelRecord) -> dict[str, str]:
        return {**model.tags, "id": model.id, PROJECT: self.place.project}


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _walk(repository: Any, folder: str | None = None) -> Iterator[str]:
    """Paths of all files of a run."""
    for item in repository.list_artifacts(folder):
        if item.is_dir:
            yield from _walk(repository, item.path)
        else:
            yield item.path


def _edges(record: Record) -> dict[str, list[str]]:
    return {"links": sorted(record.links), "measures": sorted(record.measures)}


def _progress(record: Record) -> dict[str, Any]:
    """What of a run only grows: bytes of metrics.jsonl read (and their digest), its result, scores of its base."""
    log = record.metrics
    return {"read": [log.size, log.sha256] if log else [0, ""], "result": record.result, "compared": record.compared}


def _dataset_input(use: DatasetUse) -> DatasetInput:
    source = json.dumps({"uri": use.location})
    profile = json.dumps({"artifact": use.id, "manifest_sha256": use.sha256, **use.summary}, sort_keys=True)
    dataset = Dataset(use.name, use.digest, "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", use.context)])
