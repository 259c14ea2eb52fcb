"""A view's plan, and the rows that most views have: evaluations and training runs of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from selfdistill.plan.experiments import Experiment
from selfdistill.plan.graph import Node
from selfdistill.plan.made_views import code_of_views
from selfdistill.plan.planner import Planner


@dataclass
class ViewPlan:
    """The rows of one view and the nodes they name."""

    view: str
    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    users: dict[str, set[str]] = field(default_factory=dict)

    def use(self, node: Node, experiment: str) -> str:
        """Register a node as input of the view; returns its name."""
        self.nodes[node.name] = node
        self.users.setdefault(node.name, set()).add(experiment)
        return node.name

    def as_json(self) -> dict[str, Any]:
        """What `plan.json` holds. With the code of the views, so a table of an older version is made again."""
        about = {"view": self.view, "name": self.name, "code": code_of_views(), **self.header}
        return about | {"artifacts": sorted(self.nodes), "rows": self.rows}


def about_experiment(experiment: Experiment) -> dict[str, Any]:
    method = experiment.method
    return {
        "experiment": experiment.name,
        "model": experiment.entry.model,
        "method": method.name,
        "context": method.variant,
        "arm": method.trains_on,
        "label": method.label,
        "distinct": experiment.distinct,
        "setting": dict(experiment.setting),
    }


def evaluation_rows(planner: Planner, plan: ViewPlan, experiment: Experiment, variant: str | None = None) -> None:
    chosen = {"variant": variant} if variant else {}
    for benchmark in experiment.entry.benchmarks:
        about = planner.config.benchmarks[benchmark]
        for seed, evaluation in planner.evaluations(experiment, benchmark, variant):
            train = evaluation.inputs["model"]
            plan.rows.append(
                {
                    **about_experiment(experiment),
                    **chosen,
                    "kind": "evaluation",
                    "seed": seed,
                    "benchmark": benchmark,
                    "domain": about.domain,
                    "chance": about.chance,
                    "train_artifact": plan.use(train, experiment.name),
                    "evaluate_artifact": plan.use(evaluation, experiment.name),
                    "epistemics_artifact": plan.use(planner.epistemics(evaluation), experiment.name),
                }
            )


def training_rows(planner: Planner, plan: ViewPlan, experiment: Experiment) -> None:
    for seed in experiment.seeds:
        train = plan.use(planner.train(experiment.name, seed), experiment.name)
        plan.rows.append({**about_experiment(experiment), "kind": "training", "seed": seed, "train_artifact": train})
