"""Numbers of evaluations: on their own run, on the model they measured, and on the run that trained it.

A training run shows its evaluations as `DATASET/METRIC` by step, the base model at step 0, so that one chart compares
methods. Metrics are called like the columns of the tables.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from selfdistill.artifacts.lineage import BASE_STAGES, PROBLEM_STAGES, TOWARDS_PROBLEMS, follow, nearest
from selfdistill.files import canonical_json
from selfdistill.tracking.records import Part, Scalar, legal, numbers
from selfdistill.tracking.survey import Entry

#: Names in summaries that have another name in the tables.
_COLUMNS = {
    "mean_tokens": "mean_length",
}
#: What is shown on models and training runs; counts and outcomes stay on the evaluation.
SHOWN = ("avg_at_k", "pass_at_k", "mean_length", "truncation_rate", "epistemic_count",
         "epistemic_density_per_1k_tokens")  # fmt: skip


def checkpoints_of(entry: Entry) -> dict[int, tuple[str, dict[str, str]]]:
    """Folders of weights by step, each with the digests of its files; a base model is step 0."""
    found: dict[int, tuple[str, dict[str, str]]] = {}
    for path, about in entry.artifact.manifest["files"].items():
        match = re.match(r"(payload/(?:checkpoints/step-(\d+)|model))/(.+)", path)
        if match:
            found.setdefault(int(match[2] or 0), (match[1], {}))[1][match[3]] = about["sha256"]
    return found


def models_used(entry: Entry) -> tuple[str, ...]:
    """Models (`stage/key@step`) that an artifact ran: of a training run, the checkpoints that were evaluated."""
    artifact = entry.artifact
    upstream = entry.upstream("model")
    if artifact.stage not in ("train", "evaluate", "rollouts") or upstream is None or not upstream.manifest_sha256:
        return ()
    steps = entry.params["steps"] if artifact.stage == "evaluate" else [entry.params.get("step") or 0]
    made = checkpoints_of(upstream)
    return tuple(f"{upstream.id}@{step}" for step in steps if step in made)


class Numbers:
    """The numbers of all entries; `evaluate` artifacts, and `epistemics` of these, measure models."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._by_spec = {_spec_text(entry, entry.input_ids): entry for entry in entries.values()}
        self._shown: dict[str, dict[str, Part]] = defaultdict(dict)
        for entry in entries.values():
            for maker in {model.split("@")[0] for model in self._measured(entry).values()}:
                for shown in (entry, self._twin(entry)):
                    if shown is not None and shown.manifest_sha256:
                        self._shown[maker][shown.id] = Part.of(self._as_shown(shown))

    def of(self, entry: Entry) -> tuple[Scalar, ...]:
        """Numbers of the summary; those of `step-N` belong to that step, the others to the only step, or to 0.

        A training run's summary repeats the last line of metrics.jsonl: it adds nothing.
        """
        if entry.artifact.stage == "train":
            return ()
        models = self._measured(entry)
        return tuple(
            Scalar(name, value, step, entry.finished_ms or 0, models.get(step) if name in SHOWN else None)
            for name, value, step in _summary(entry, only_step=next(iter(models)) if len(models) == 1 else 0)
        )

    def shown_on(self, entry: Entry) -> dict[str, Part]:
        """Evaluations of the models that a run made, and of the base model it started from, by artifact."""
        return self._shown[entry.id]

    def _as_shown(self, entry: Entry) -> Iterator[Scalar]:
        """The main numbers of an evaluation, as `DATASET/METRIC`."""
        for scalar in self.of(entry):
            if scalar.name in SHOWN:
                yield scalar._replace(name=f"{evaluated_on(entry)}/{scalar.name}", model=None)

    def _evaluation(self, entry: Entry) -> Entry | None:
        """The evaluation that an artifact is, or whose words it counts."""
        if entry.artifact.stage == "epistemics":
            entry = entry.upstream("rollouts") or entry
        return entry if entry.artifact.stage == "evaluate" else None

    def _measured(self, entry: Entry) -> dict[int, str]:
        """Models by step."""
        evaluation = self._evaluation(entry)
        used = models_used(evaluation) if evaluation else ()
        return {int(model.rpartition("@")[2]): model for model in used}

    def _twin(self, entry: Entry) -> Entry | None:
        """The same evaluation of the base model, or the words counted in it; None for the base itself."""
        inputs = entry.input_ids
        if entry.artifact.stage == "evaluate":
            trained = entry.upstream("model")
            if trained is None or trained.artifact.stage in BASE_STAGES:
                return None
            return self._by_spec.get(_spec_text(entry, inputs | {"model": trained.input_ids["model"]}))
        evaluation = self._evaluation(entry)
        twin = self._twin(evaluation) if evaluation else None
        return self._by_spec.get(_spec_text(entry, {"rollouts": twin.id})) if twin else None


def evaluated_on(entry: Entry) -> str:
    """Prefix of an evaluation's numbers on the run that made the model: the data set."""
    table = nearest(follow(entry, TOWARDS_PROBLEMS), TOWARDS_PROBLEMS, PROBLEM_STAGES)
    return table.artifact.slug if table is not None else entry.artifact.slug


def _spec_text(entry: Entry, inputs: dict[str, str]) -> str:
    """A spec, as text, without the steps that it evaluates."""
    params = {name: value for name, value in entry.params.items() if name != "steps"}
    return canonical_json([entry.artifact.stage, params, inputs])


def _summary(entry: Entry, only_step: int) -> Iterator[tuple[str, float, int]]:
    for part, values in entry.summary.items():
        match = re.fullmatch(r"step-(\d+)", part)
        step = int(match[1]) if match else only_step
        for name, value in numbers(_as_in_tables(values) if match else {_COLUMNS.get(part, part): values}):
            yield legal(name), value, step


def _as_in_tables(values: dict[str, Any]) -> dict[str, Any]:
    renamed = {_COLUMNS.get(name, name): value for name, value in values.items()}
    if "outcomes" in values and "avg_at_k" not in values:
        renamed["avg_at_k"] = values["outcomes"]["correct"] / values["completions"]
    return renamed
