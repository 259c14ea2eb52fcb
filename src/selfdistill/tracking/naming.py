"""Names of runs: those that people used when an artifact was made, and values where several runs share a name."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from selfdistill.artifacts.lineage import PROBLEM_STAGES, TOWARDS_PROBLEMS, base_model, nearest, trained_model
from selfdistill.plan.names import Names
from selfdistill.tracking.run_records import flatten
from selfdistill.tracking.survey import Entry, Survey

#: How many values that tell runs apart a name shows, and how much of each.
_MOST_VALUES, _MOST_LETTERS = 3, 40


@dataclass(frozen=True)
class Label:
    """Names of one artifact."""

    experiments: tuple[str, ...] = ()
    model: str | None = None
    seed: int | None = None
    benchmark: str | None = None
    domain: str | None = None
    context: str | None = None

    @classmethod
    def of(cls, names: dict[str, Any]) -> Label:
        known = {field: names[field] for field in cls.__dataclass_fields__ if field in names}
        return cls(**known | {"experiments": tuple(names.get("experiments", ()))})

    @property
    def experiment(self) -> str | None:
        """The shortest name, where several experiments share the artifact."""
        return min(self.experiments, key=lambda name: (len(name), name), default=None)

    @property
    def subject(self) -> str | None:
        """`toy_sdpo seed 0`, or the name of the base model."""
        return self.model if self.seed is None else f"{self.experiment} seed {self.seed}"

    def run_name(self, stage: str) -> str | None:
        """The name of the run of an artifact; None where the plans give it none."""
        if stage in ("train", "pretrain", "model"):
            return self.subject
        words = "words: " if stage == "epistemics" else ""
        if self.benchmark:
            return f"{words}{self.subject} on {self.benchmark}"
        if self.context and stage in ("rollouts", "epistemics"):
            return f"{words}{self.model} with context {self.context}"
        return None


class Labels:
    """Labels of all entries of a survey."""

    def __init__(self, survey: Survey) -> None:
        self._planned = Names()
        for path in sorted(survey.results / plan for plan in survey.plans):
            self._planned.add(json.loads(path.read_text(encoding="utf-8")).get("rows", []))
        self._labels = {entry.id: self._read(entry) for entry in survey.entries.values()}
        self._run_names = dict(self._distinct(survey.entries.values()))

    def of(self, entry: Entry) -> Label:
        return self._labels[entry.id]

    def run_name(self, entry: Entry) -> str:
        return self._run_names[entry.id]

    def _read(self, entry: Entry) -> Label:
        """Names of the last attempt; of the present plans for an artifact that was made before names were recorded."""
        recorded = next((a["names"] for a in reversed(entry.attempts) if a.get("names")), None)
        return Label.of(recorded or self._planned.by_artifact.get(entry.artifact.name, {}))

    def _distinct(self, entries: Iterable[Entry]) -> Iterator[tuple[str, str]]:
        """Names of runs by id; runs of one name show the values in which they differ."""
        same: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in entries:
            name = self.of(entry).run_name(entry.stage) or f"{entry.stage}/{entry.artifact.slug}"
            same[entry.stage, name].append(entry)
        for (_, name), group in same.items():
            shown = _differences(group) if len(group) > 1 else {}
            for entry in group:
                yield entry.id, f"{name} ({shown[entry.id]})" if shown else name


def _differences(entries: list[Entry]) -> dict[str, str]:
    """`learning_rate=0.001`: up to three values in which artifacts differ; the key where that is not enough."""
    about = {entry.id: _about(entry) for entry in entries}
    names = list(dict.fromkeys(name for values in about.values() for name in values))
    differing = [name for name in names if len({values.get(name) for values in about.values()}) > 1][:_MOST_VALUES]
    shown = {
        id_: ", ".join(f"{name.rpartition('.')[2]}={values.get(name, '-')[:_MOST_LETTERS]}" for name in differing)
        for id_, values in about.items()
    }
    if len(set(shown.values())) < len(shown):
        return {id_: ", ".join(filter(None, [text, id_.partition("/")[2]])) for id_, text in shown.items()}
    return shown


def _about(entry: Entry) -> dict[str, str]:
    """All values behind an artifact: of its base model, its training with the problems of that, and itself."""
    trained = trained_model(entry)
    values: dict[str, str] = {}
    for item in (base_model(entry), trained, nearest(trained, TOWARDS_PROBLEMS, PROBLEM_STAGES), entry):
        if item is not None:
            own = item.params | {"version": item.artifact.frozen_spec["version"]}
            values |= {f"{item.stage}.{name}": value for name, value in flatten(own).items()}
    return values
