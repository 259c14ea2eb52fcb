"""Records -> MLflow.

The tag `MARK` of a run says what was written; while that goes on it has no digest. A run found in this
state was interrupted and is written anew, so no half-written run is ever taken for a whole one.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
from alembic.util import CommandError
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
from mlflow.exceptions import MlflowException
from mlflow.models.utils import get_external_mlflow_model_spec
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from sqlalchemy.exc import SQLAlchemyError

from selfdistill.schema.errors import UserError
from selfdistill.tracking.attachments import SAMPLES_FILE
from selfdistill.tracking.experiments import EXPERIMENTS, VIEW_TAG, note, score_views
from selfdistill.tracking.run_records import OUR_TAGS, DatasetUse, ModelRecord, Record, Scalar
from selfdistill.tracking.store import TrackingStore

for _name in ("mlflow", "alembic"):  # They log the traceback of an error that becomes one line of ours.
    logging.getLogger(_name).setLevel(logging.CRITICAL)

VERSION = mlflow.__version__
#: What a store that is gone, broken, full or too new raises.
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, CommandError, OSError, ImportError)

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
    def links(self) -> set[str]:
        return set(self.mark.get("links", ()))

    @property
    def measures(self) -> set[str]:
        return set(self.mark.get("measures", ()))


class Index:
    """One project's runs and models in one MLflow store."""

    def __init__(self, store: TrackingStore, uri: str, only: Collection[str] | None = None) -> None:
        """`only`: ids of the artifacts whose runs are read; None reads all."""
        self.store = store
        self.client = MlflowClient(uri, registry_uri=uri)
        self.experiments = {group: self._experiment(group) for group in EXPERIMENTS}
        mine = f"tags.`{PROJECT}` = '{store.project}'"
        filters = [mine] if only is None else [f"{mine} and tags.artifact = '{name}'" for name in only]
        self.tracked = {
            run.data.tags["artifact"]: Tracked(run, json.loads(run.data.tags[MARK]))
            for mine in filters
            for run in self._runs(mine)
        }
        self.models = {model.tags["id"]: model for mine in filters for model in self._models(mine)}
        self.kept = store.kept_tags()
        self.created: list[str] = []
        self.points = 0
        self.problems: list[str] = []

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
            made = self.client.create_experiment(name, self.store.artifact_location(group), tags)
            self.client.set_experiment_tag(made, "mlflow.note.content", note(group, made))
            return made
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def show_scores(self, records: Iterable[Record]) -> None:
        """Update the prepared views of training and evaluation runs: the columns follow what was evaluated."""
        for group, view in score_views(records).items():
            if self.client.get_experiment(self.experiments[group]).tags.get(VIEW_TAG) != view:
                self.client.set_experiment_tag(self.experiments[group], VIEW_TAG, view)

    def _runs(self, mine: str) -> Iterator[Run]:
        groups, token = list(self.experiments.values()), None
        while True:
            page = self.client.search_runs(groups, mine, ViewType.ACTIVE_ONLY, max_results=_PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _models(self, mine: str) -> Iterator[Any]:
        groups, token = [self.experiments["training"]], None
        while True:
            page = self.client.search_logged_models(groups, mine, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def tags_of_people(self, artifact_id: str) -> dict[str, str]:
        """The tags of a run that are not ours."""
        ours = {PROJECT, MARK, "mlflow.runName", "mlflow.loggedArtifacts", *OUR_TAGS}
        return {name: value for name, value in self.tracked[artifact_id].run.data.tags.items() if name not in ours}

    def remove(self, artifact_id: str) -> None:
        """Delete a run and its models."""
        tracked = self.tracked.pop(artifact_id)
        for name, model in list(self.models.items()):
            if name.split("@")[0] == artifact_id:
                self.client.delete_logged_model(model.model_id)
                del self.models[name]
        self.client.delete_run(tracked.run.info.run_id)

    def is_whole(self, record: Record) -> bool:
        """True if what MLflow has of a run is complete, and is the beginning or all of what the record says.

        It is not where a writer was interrupted, or where somebody deleted a checkpoint in the UI.
        """
        mark = self.tracked[record.id].mark
        if "digest" not in mark or not record.continues(mark):
            return False
        made = (model.id for name in mark["parts"] for model in record.parts[name].models)
        return all(name in self.models for name in made)

    def create(self, record: Record) -> None:
        """Write a run that MLflow does not have yet, with the tags that people gave to the one before."""
        run = self.client.create_run(
            self.experiments[record.group],
            start_time=record.started_ms,
            tags=self.kept.get(record.id, {}) | self._own_tags(record) | {MARK: json.dumps(record.edges)},
            run_name=record.name,
        )
        inputs = [_dataset_input(use) for use in record.datasets]
        used = [LoggedModelInput(self.models[name].model_id) for name in record.uses]
        if inputs or used:
            self.client.log_inputs(run.info.run_id, datasets=inputs, models=used)
        self._add_numbers(record, run, {"read": [0], "parts": {}})
        self._finish(record, run, files="", params=record.params)
        self.created.append(record.id)

    def extend(self, record: Record) -> None:
        """Bring a run up to date: new metrics and parts, name, status, tags, files."""
        tracked = self.tracked[record.id]
        run, mark = tracked.run, tracked.mark
        if any(mark[name] != value for name, value in record.progress.items()):
            self.client.set_tag(run.info.run_id, MARK, json.dumps(record.edges))
            self._add_numbers(record, run, mark)
        if run.info.run_name != record.name:
            self.client.update_run(run.info.run_id, name=record.name)
        for name in sorted((OUR_TAGS & set(run.data.tags)) - set(record.tags)):
            self.client.delete_tag(run.info.run_id, name)
        self._finish(record, run, files=mark["files"], tags=self._own_tags(record))

    def _add_numbers(self, record: Record, run: Run, mark: dict[str, Any]) -> None:
        """What a run has got since its mark: lines of metrics, and parts with their models."""
        points = list(record.metrics.points(mark["read"][0])) if record.metrics else []
        for name, part in record.parts.items():
            if name not in mark["parts"]:
                for model in part.models:
                    self._create_model(model, run, record)
                points += part.scalars
        if record.samples is not None and record.id not in mark["parts"]:
            self._write_samples(record, run)
        self._log(run.info.run_id, points, record.datasets[0] if record.datasets else None)

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
        tags = model.tags | {"id": model.id, PROJECT: self.store.project, "mlflow.model.isExternal": "true"}
        made = self.client.create_logged_model(
            self.experiments[record.group], model.name, run.info.run_id, tags, model.params, model.kind
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "MLmodel"
            get_external_mlflow_model_spec(made).save(str(path))
            self.client.log_model_artifact(made.model_id, str(path))
        self.models[model.id] = self.client.finalize_logged_model(made.model_id, "READY")
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, model.step)])

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
            **record.progress,
            "files": record.files_sha256,
            **record.edges,
        }
        *first, last = _batches([Param(*item) for item in params.items()], _BATCH) or [[]]
        for some in first:
            self.client.log_batch(run_id, params=some)
        written = [RunTag(*item) for item in {**tags, MARK: json.dumps(mark, sort_keys=True)}.items()]
        self.client.log_batch(run_id, params=last, tags=written)
        self.tracked[record.id] = Tracked(run, mark)

    def _write_samples(self, record: Record, run: Run) -> None:
        try:
            table = record.samples.read()
        except (OSError, UserError) as error:
            self.problems.append(f"completions of {record.id}: {error}")
        else:
            self.client.log_table(run.info.run_id, table, SAMPLES_FILE)

    def _write_files(self, record: Record, run: Run, *, is_new: bool) -> None:
        repository = get_artifact_repository(run.info.artifact_uri)
        for name, (path, _) in sorted(record.files.items()):
            parent = str(Path(name).parent)
            if not Path(path).is_file():
                self.problems.append(f"{path} was removed while MLflow was updated.")
                continue
            repository.log_artifact(path, None if parent == "." else parent)
        if not is_new:
            for gone in set(_walk(repository)) - {*record.files, SAMPLES_FILE}:
                repository.delete_artifacts(gone)

    def _own_tags(self, record: Record) -> dict[str, str]:
        return record.tags | {PROJECT: self.store.project}


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _walk(repository: Any, folder: str | None = None) -> Iterator[str]:
    """Paths of all files of a run."""
    for item in repository.list_artifacts(folder):
        if item.is_dir:
            yield from _walk(repository, item.path)
        else:
            yield item.path


def _dataset_input(use: DatasetUse) -> DatasetInput:
    source = json.dumps({"uri": use.location})
    profile = json.dumps({"artifact": use.id, "manifest_sha256": use.sha256, **use.summary}, sort_keys=True)
    dataset = Dataset(use.name, use.digest, "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", use.context)])
