"""Numbers of evaluations: on their own run, on the model they measured, and on the run that trained it.

A training run shows its evaluations as `BENCHMARK/METRIC` by step, the base model at step 0, so that one chart compares
methods. Metrics are called like the columns of the tables.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from selfdistill.artifacts.lineage import BASE_STAGES, PROBLEM_STAGES, TOWARDS_PROBLEMS, follow, nearest
from selfdistill.files import canonical_json, sha256_text
from selfdistill.tracking.naming import Labels
from selfdistill.tracking.run_records import Part, Scalar, legal, numbers
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

    def __init__(self, entries: dict[str, Entry], labels: Labels) -> None:
        self._by_spec = {_spec_text(entry, entry.input_ids): entry for entry in entries.values()}
        self._shown: dict[str, dict[str, Part]] = defaultdict(dict)
        titles = _Titles(self, entries.values(), labels)
        for entry in entries.values():
            for maker in self.makers(entry):
                title = titles.of(entry, maker)
                for shown in (entry, self._twin(entry)):
                    if shown is not None and shown.manifest_sha256:
                        self._shown[maker][shown.id] = Part.of(self._as_shown(shown, title))

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

    def makers(self, entry: Entry) -> set[str]:
        """Artifacts whose models an evaluation, or the words counted in one, measures."""
        return {model.split("@")[0] for model in self._measured(entry).values()}

    def _as_shown(self, entry: Entry, title: str) -> Iterator[Scalar]:
        """The main numbers of an evaluation, as `BENCHMARK/METRIC`."""
        for scalar in self.of(entry):
            if scalar.name in SHOWN:
                yield scalar._replace(name=f"{title}/{scalar.name}", model=None)

    def evaluation(self, entry: Entry) -> Entry | None:
        """The evaluation that an artifact is, or whose words it counts."""
        if entry.artifact.stage == "epistemics":
            entry = entry.upstream("rollouts") or entry
        return entry if entry.artifact.stage == "evaluate" else None

    def _measured(self, entry: Entry) -> dict[int, str]:
        """Models by step."""
        evaluation = self.evaluation(entry)
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
        evaluation = self.evaluation(entry)
        twin = self._twin(evaluation) if evaluation else None
        return self._by_spec.get(_spec_text(entry, {"rollouts": twin.id})) if twin else None


class _Titles:
    """What an evaluation is called on the run that made its models: the benchmark.

    Where one run was evaluated on two benchmarks of one name (its data or sampling was changed in between), each gets
    a digest, because MLflow would draw both as one curve.
    """

    def __init__(self, numbers: Numbers, entries: Iterable[Entry], labels: Labels) -> None:
        self._numbers, self._labels = numbers, labels
        self._same: dict[tuple[str, str], set[str]] = defaultdict(set)
        for entry in entries:
            for maker in numbers.makers(entry):
                self._same[maker, self._benchmark(entry)].add(self._digest(entry))

    def of(self, entry: Entry, maker: str) -> str:
        name = self._benchmark(entry)
        return legal(name if len(self._same[maker, name]) == 1 else f"{name}:{self._digest(entry)}")

    def _benchmark(self, entry: Entry) -> str:
        """Name of the benchmark; the data set of an evaluation that nobody gave a name."""
        evaluation = self._numbers.evaluation(entry) or entry
        table = nearest(follow(evaluation, TOWARDS_PROBLEMS), TOWARDS_PROBLEMS, PROBLEM_STAGES)
        name = self._labels.of(evaluation).benchmark or (table or evaluation).artifact.slug
        return name + _manner(evaluation.params)

    def _digest(self, entry: Entry) -> str:
        evaluation = self._numbers.evaluation(entry) or entry
        inputs = {role: id_ for role, id_ in evaluation.input_ids.items() if role != "model"}
        return sha256_text(_spec_text(evaluation, inputs))[:6]


def _manner(params: dict[str, Any]) -> str:
    """What tells an evaluation with a forced beginning, or without some words, from the plain one."""
    begun = f" after {params['prefix']}" if params.get("prefix") else ""
    return begun + (f" without {len(params['banned_words'])} words" if params.get("banned_words") else "")


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
