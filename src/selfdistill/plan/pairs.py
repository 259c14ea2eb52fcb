"""What `selfdistill compare` and the `compare` of a report compare: experiments, seeds, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from selfdistill.plan.experiments import get
from selfdistill.plan.planner import Planner
from selfdistill.plan.view_plan import ViewPlan, evaluation_rows
from selfdistill.schema.errors import Keys, SettingError, UserError

#: Section of the rows of chosen pairs in a report's plan.
SECTION = "compare"


class SideName(NamedTuple):
    """One side of a comparison; `seed` None: all seeds; `step` None: the last."""

    experiment: str
    seed: int | None
    step: int | None


def side_name(text: str) -> SideName:
    """`EXPERIMENT`, `EXPERIMENT:SEED` or `EXPERIMENT:SEED:STEP`, where `all` stands for every seed; else UserError."""
    name, *rest = text.split(":")
    try:
        numbers = [None if part in ("", "all") else int(part) for part in rest]
    except ValueError:
        numbers = [None] * 3
    if len(numbers) > 2:
        raise UserError(f"`{text}` is not EXPERIMENT, EXPERIMENT:SEED or EXPERIMENT:SEED:STEP (`all` for every seed).")
    return SideName(name, *[*numbers, None, None][:2])


def plan_pairs(planner: Planner, plan: ViewPlan, pairs: Sequence[Sequence[str]], place: Keys) -> None:
    """Add the evaluations of both sides of each pair; SettingError for what no run would give."""
    plan.header[SECTION] = [list(pair) for pair in pairs]
    for index, pair in enumerate(pairs):
        sides = []
        for text in pair:
            try:
                sides.append(_evaluated(planner, plan, text))
            except UserError as error:
                raise SettingError.at(*place, SECTION, index, problem=error) from None
        if not sides[0] & sides[1]:
            raise SettingError.at(*place, SECTION, index, problem=f"{' and '.join(pair)} share no benchmark.")


def _evaluated(planner: Planner, plan: ViewPlan, text: str) -> set[str]:
    """Plan the evaluations of one side; returns its benchmarks."""
    name = side_name(text)
    experiment = get(planner.experiments, name.experiment)
    if name.seed is not None and name.seed not in experiment.seeds:
        raise UserError(f"`{text}`: there is no seed {name.seed}; there are {', '.join(map(str, experiment.seeds))}.")
    part = ViewPlan(plan.view, plan.name, nodes=plan.nodes, users=plan.users)
    evaluation_rows(planner, part, experiment)
    steps = {step for node in part.nodes.values() if node.name in _trained(part) for step in node.spec.steps}
    if name.step and name.step not in steps:
        known = ", ".join(map(str, sorted({0} | steps)))
        raise UserError(f"`{text}`: step {name.step} is not evaluated; evaluated are {known}.")
    plan.rows += [row for shown in part.rows if (row := {**shown, "section": SECTION}) not in plan.rows]
    return {row["benchmark"] for row in part.rows}


def _trained(part: ViewPlan) -> set[str]:
    """Evaluations of trained checkpoints."""
    return {row["evaluate_artifact"] for row in part.rows if row["seed"] is not None}
