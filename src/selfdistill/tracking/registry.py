"""Checkpoints in MLflow's model registry, by reference: no weights are copied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from selfdistill.artifacts.store import Artifact
from selfdistill.schema.errors import UserError
from selfdistill.tracking.store import TrackingStore, sqlite_settings
from selfdistill.tracking.sync import only_writer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


def register_checkpoint(artifact: Artifact, name: str, *, step: int | None = None, aliases: Iterable[str] = ()) -> str:
    """Register a checkpoint (default: the last one) that MLflow knows already; returns what was done, as a sentence.

    A checkpoint that is registered under this name keeps its version. UserError if MLflow does not know it.
    """
    store = TrackingStore.choose(artifact.root)
    store.check_reachable()
    with only_writer(store, print), sqlite_settings():
        from selfdistill.tracking.index import STORE_ERRORS, Index

        try:
            with Index(store, store.uri, only=[artifact.id]) as index:
                model = _checkpoint(artifact, index.models, step)
                version = _version(index.client, name, model)
                for alias in aliases:
                    index.client.set_registered_model_alias(name, alias, version)
        except STORE_ERRORS as error:
            raise store.failure(error) from error
    named = "".join(f" and as {name}@{alias}" for alias in aliases)
    return f"{artifact.name}, step {model.params['step']}, is registered as {name} version {version}{named}."


def _checkpoint(artifact: Artifact, models: dict[str, LoggedModel], step: int | None) -> LoggedModel:
    by_step = {int(model.params["step"]): model for model in models.values()}
    if not by_step:
        raise UserError(f"{artifact.name} has no checkpoint in MLflow: name a finished training, or a base model.")
    if step is not None and step not in by_step:
        raise UserError(
            f"{artifact.name} has no checkpoint at step {step}. Steps: {', '.join(map(str, sorted(by_step)))}."
        )
    return by_step[max(by_step) if step is None else step]


def _version(client: MlflowClient, name: str, model: LoggedModel) -> int | str:
    """Number of the version of a registered model that is this checkpoint, new if there is none."""
    quoted = name.replace("'", "\\'")
    if not client.search_registered_models(f"name = '{quoted}'"):
        client.create_registered_model(name)
    tags = {field: model.params[field] for field in ("artifact", "step", "sha256", "location")}
    for version in client.search_model_versions(f"name = '{quoted}'"):
        if version.tags == tags:
            return version.version
    source, run = model.artifact_location, model.source_run_id
    return client.create_model_version(name, source, run, tags=tags, model_id=model.model_id).version
