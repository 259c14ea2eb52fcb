"""Artifacts -> records: parameters, tags, data sets, models and numbers of every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfdistill.artifacts.lineage import (
    BASE_STAGES,
    PROBLEM_STAGES,
    TOWARDS_PROBLEMS,
    base_model,
    closure,
    follow,
    nearest,
    trained_model,
)  # fmt: skip
from selfdistill.files import canonical_json, sha256_text
from selfdistill.schema.methods import method_title
from selfdistill.tracking.attachments import Samples, tables_of_runs
from selfdistill.tracking.experiments import GROUPS
from selfdistill.tracking.naming import Label, Labels
from selfdistill.tracking.numbers import Numbers, checkpoints_of, models_used
from selfdistill.tracking.run_records import (
    MOST_TAG,
    VIEWS_ID,
    DatasetUse,
    MetricsLog,
    ModelRecord,
    Part,
    Record,
    fit,
    flatten,
    model_name,
)  # fmt: skip
from selfdistill.tracking.survey import Entry, Survey

_CONTEXTS = {"train": "training", "evaluate": "evaluation", "epistemics": "evaluation"}


def build_records(survey: Survey) -> dict[str, Record]:
    """Every run that MLflow should have, upstream first."""
    builder = _Builder(survey)
    entries = closure(entry for _, entry in sorted(survey.entries.items()))
    records = {entry.id: builder.record(entry) for entry in entries}
    if survey.views:
        start = min((record.started_ms for record in records.values()), default=0)
        views = _views_record(survey, start)
        records[views.id] = views
    return records


class _Builder:
    def __init__(self, survey: Survey) -> None:
        self.labels = Labels(survey)
        self.tables = tables_of_runs(survey)
        self.numbers = Numbers(survey.entries, self.labels)

    def record(self, entry: Entry) -> Record:
        artifact, stage = entry.artifact, entry.artifact.stage
        label = self.labels.of(entry)
        datasets = tuple(self._datasets(entry))
        inputs = {f"inputs.{role}": upstream for role, upstream in artifact.input_ids.items()}
        steps = entry.params.get("steps")
        return Record(
            id=entry.id,
            group=GROUPS.get(stage, "data"),
            name=self.labels.run_name(entry),
            status=entry.status,
            started_ms=entry.started_ms,
            finished_ms=entry.finished_ms,
            params=flatten(entry.params) | inputs | {"version": str(artifact.frozen_spec["version"])},
            tags=self._tags(entry, label, datasets),
            datasets=datasets,
            uses=models_used(entry),
            parts=self._result(entry, label, datasets) | self.numbers.shown_on(entry),
            files=self.tables.get(artifact.name, {})
            | {name: (str(artifact.folder / name), sha) for name, sha in entry.sidecars.items()},
            samples=Samples.of(entry),
            metrics=MetricsLog.read(
                artifact.metrics, started_ms=entry.started_ms, steps=steps if isinstance(steps, int) else None
            ),
        )

    def _datasets(self, entry: Entry) -> Iterator[DatasetUse]:
        """The problem table behind an artifact first, then the data set it was taken from, then what was excluded."""
        context = _CONTEXTS.get(entry.artifact.stage, "input")
        table = nearest(follow(entry, TOWARDS_PROBLEMS), TOWARDS_PROBLEMS, PROBLEM_STAGES)
        source = nearest(table, TOWARDS_PROBLEMS, ("dataset",))
        excluded = [entry.upstream(role) for role in entry.input_ids if role.startswith("exclude.")]
        uses = [(table, context), (source if source is not table else None, "source")]
        uses += [(other, "excluded") for other in excluded]
        for used, role in uses:
            if used is not None and used.manifest_sha256:
                artifact = used.artifact
                yield DatasetUse(
                    artifact.slug, used.id, used.manifest_sha256, artifact.folder.as_posix(), role, used.summary
                )

    def _result(self, entry: Entry, label: Label, datasets: tuple[DatasetUse, ...]) -> dict[str, Part]:
        """What a sealed artifact adds to its run."""
        if not entry.manifest_sha256:
            return {}
        return {entry.id: Part.of(self.numbers.of(entry), self._models(entry, label, datasets))}

    def _models(self, entry: Entry, label: Label, datasets: tuple[DatasetUse, ...]) -> Iterator[ModelRecord]:
        if entry.artifact.stage not in ("train", *BASE_STAGES):
            return
        artifact, tags = entry.artifact, {"artifact": entry.id, **self._people(entry, label)}
        is_base, base = artifact.stage in BASE_STAGES, base_model(entry)
        shared = self._lineage(entry, base, _main(datasets))
        parent = None if is_base or base is None else f"{base.id}@0"
        for step, (folder, files) in sorted(checkpoints_of(entry).items()):
            about = {
                "step": str(step),
                "sha256": sha256_text(canonical_json(files)),
                "parent": parent or "",
                "location": (artifact.folder / folder).as_posix(),
            }
            name = model_name(artifact.slug if is_base else f"{artifact.slug}-step-{step}")
            kind = "base" if is_base else "checkpoint"
            yield ModelRecord(f"{entry.id}@{step}", name, kind, step, shared | about, tags | {"step": str(step)})
            parent = f"{entry.id}@{step}"

    def _lineage(self, entry: Entry, base: Entry | None, dataset: DatasetUse | None) -> dict[str, str]:
        """What the checkpoints of a run have in common, as parameters of each."""
        known = {
            "artifact": entry.id,
            "spec_sha256": _spec_sha256(entry),
            "manifest_sha256": entry.manifest_sha256,
            "seed": entry.params.get("seed"),
            "commit": entry.provenance.get("commit"),
            "dirty": entry.provenance.get("dirty"),
            "base_model": base and base.id,
            "base_manifest_sha256": base and base.manifest_sha256,
            "dataset": dataset and dataset.id,
            "dataset_sha256": dataset and dataset.sha256,
        }
        return {name: str(value) for name, value in known.items() if value is not None}

    def _tags(self, entry: Entry, label: Label, datasets: tuple[DatasetUse, ...]) -> dict[str, str]:
        artifact, made = entry.artifact, entry.provenance
        parents, dataset = artifact.input_ids, _main(datasets)
        known = {
            "artifact": entry.id,
            "stage": artifact.stage,
            "key": artifact.key,
            "slug": artifact.slug,
            "spec_sha256": _spec_sha256(entry),
            "manifest_sha256": entry.manifest_sha256,
            "parents": canonical_json(parents) if parents else None,
            "location": artifact.folder.as_posix(),
            "started": made.get("started"),
            "finished": made.get("finished"),
            "attempts": len(entry.attempts) or None,
            "commit": made.get("commit"),
            "dirty": made.get("dirty"),
            "host": made.get("host"),
            "dataset": dataset and dataset.name,
            **self._people(entry, label),
            "mlflow.user": made.get("user"),
            "mlflow.source.name": f"selfdistill {artifact.stage}",
            "mlflow.source.type": "JOB",
            "mlflow.source.git.commit": made.get("commit"),
        }
        return {name: fit(str(value), MOST_TAG) for name, value in known.items() if value is not None}

    def _people(self, entry: Entry, label: Label) -> dict[str, str]:
        """What people filter and group by: method, model, training seed, and the names in the plans."""
        trained = trained_model(entry)
        base = base_model(entry)
        # A base model, or an evaluation of one: the row that methods are compared with.
        is_base = base is not None and trained is None and entry.artifact.stage in (*BASE_STAGES, *_CONTEXTS)
        known: dict[str, Any] = {
            "model": base and base.artifact.slug,
            "method": method_title(trained.params["method"]) if trained else "base" if is_base else None,
            "seed": trained.params["seed"] if trained else None,
            "experiment": label.experiment,
            "experiments": ", ".join(label.experiments) or None,
            "benchmark": label.benchmark if entry.artifact.stage != "train" else None,
            "domain": label.domain if entry.artifact.stage in _CONTEXTS else None,
        }
        return {name: fit(str(value), MOST_TAG) for name, value in known.items() if value is not None}


def _views_record(survey: Survey, started_ms: int) -> Record:
    """The run that holds the tables and the report."""
    return Record(
        id=VIEWS_ID,
        group="results",
        name="tables and report",
        status="FINISHED",
        started_ms=started_ms,
        finished_ms=max(int((survey.results / name).stat().st_mtime * 1000) for name in survey.views),
        params={},
        tags={"artifact": VIEWS_ID, "stage": "views"},
        files={name: (str(survey.results / name), sha) for name, sha in survey.views.items()},
    )


def _main(datasets: tuple[DatasetUse, ...]) -> DatasetUse | None:
    """The problems an artifact is about; those it only had to avoid are not."""
    return next((use for use in datasets if use.context != "excluded"), None)


def _spec_sha256(entry: Entry) -> str:
    return sha256_text(canonical_json(entry.artifact.frozen_spec))
