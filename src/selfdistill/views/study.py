"""The report's plan as objects: models, their experiments, their benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from selfdistill.views.evaluations import Evaluation, Row, evaluations
from selfdistill.views.measures import Measurement
from selfdistill.views.richness import context_measurement
from selfdistill.views.style import Look, looks

OUT_OF_DISTRIBUTION = "ood"


@dataclass
class ModelStudy:
    """Everything that a report shows of one base model."""

    model: str
    main: list[Evaluation] = field(default_factory=list)
    training: dict[str, list[Row]] = field(default_factory=dict)
    richness: dict[str, Row] = field(default_factory=dict)
    sft: list[Evaluation] = field(default_factory=list)
    coverage: list[Evaluation] = field(default_factory=list)

    @property
    def experiments(self) -> list[str]:
        return list(dict.fromkeys(e.about["experiment"] for e in self.main))

    def benchmarks(self, domain: str | None = None) -> list[str]:
        """Benchmarks of the main experiments, in the plan's order; of one domain if given."""
        return list(dict.fromkeys(e.benchmark for e in self.main if domain in (None, e.domain)))

    def on(self, benchmark: str) -> dict[str, Evaluation]:
        """Experiment -> evaluation, of those that were evaluated on a benchmark."""
        return {e.about["experiment"]: e for e in self.main if e.benchmark == benchmark}

    def by_method(self, benchmark: str) -> dict[tuple[str, str | None], Evaluation]:
        """(method, context) -> the first experiment of that kind, on a benchmark."""
        found: dict[tuple[str, str | None], Evaluation] = {}
        for evaluation in self.on(benchmark).values():
            found.setdefault((evaluation.about["method"], evaluation.about["context"]), evaluation)
        return found

    def contexts(self) -> dict[str, Measurement]:
        return {context: context_measurement(row) for context, row in self.richness.items()}


@dataclass(frozen=True)
class Study:
    """The whole report: one entry per base model, and one look per experiment."""

    models: list[ModelStudy]
    looks: dict[str, Look]
    lexicon: list[str]
    artifacts: list[str]


def read_study(plan: dict[str, Any]) -> Study:
    """Sort the rows of the report's plan by model and section."""
    rows: list[Row] = plan["rows"]
    models = {name: ModelStudy(name) for name in dict.fromkeys(row["model"] for row in rows)}
    for name, study in models.items():
        own = [row for row in rows if row["model"] == name]
        main = [row for row in own if "section" not in row]
        study.main = evaluations(main)
        for row in main:
            if row["kind"] == "training":
                study.training.setdefault(row["experiment"], []).append(row)
        study.richness = {row["context"]: row for row in _section(own, "richness")}
        study.sft = evaluations(_section(own, "sft"))
        study.coverage = evaluations(_section(own, "coverage"))
    named = [row for row in rows if row["kind"] != "richness"]
    # Coverage sweeps share the look of their parent experiment, so they get no label of their own.
    chosen = looks(row for row in named if row.get("distinct") is None)
    return Study(list(models.values()), chosen, plan["lexicon"], plan["artifacts"])


def _section(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if row.get("section") == name]
