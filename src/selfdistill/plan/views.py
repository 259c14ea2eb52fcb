"""Which artifacts stand behind a table or figure.

A view's plan is a JSON file, `results/plans/<view>/<name>/plan.json`: rows that name artifacts and say what each is.
The view reads nothing else, so it shows what was planned, whatever the config says by then.
"""

from __future__ import annotations

from collections.abc import Callable

from selfdistill.plan.experiments import Experiment, get
from selfdistill.plan.pairs import plan_pairs
from selfdistill.plan.planner import Planner
from selfdistill.plan.view_plan import ViewPlan, about_experiment, evaluation_rows, training_rows
from selfdistill.schema.errors import SettingError, UserError, nearest, unknown
from selfdistill.schema.shown import ReportEntry

#: Sections of a report that are tables of their own, of the same names.
SECTIONS = ("richness", "sft", "coverage", "cures", "forced", "tuning", "diagnostics")
#: The name of the report that `report` describes; those of `reports` have their own.
DEFAULT_REPORT = "report"


def plan_view(planner: Planner, view: str, name: str) -> ViewPlan:
    """The plan of `results/<view>/<name>.csv` (or of the report); UserError for an unknown name."""
    if view not in VIEWS:
        raise unknown("view", view, VIEWS)
    plan = ViewPlan(view, name)
    VIEWS[view](planner, plan, name)
    return plan


def view_names(planner: Planner) -> dict[str, list[str]]:
    """Every name that a view can have: what the targets of the workflow are."""
    experiments = list(planner.experiments.values())
    return {
        "ood": sorted(planner.experiments),
        "epistemic": sorted(planner.experiments),
        "curves": sorted(planner.experiments),
        "richness": sorted(planner.config.richness),
        "sft": sorted({e.entry.model for e in experiments if e.method.trains_on}),
        "coverage": sorted({e.entry.model for e in experiments if e.swept_from}),
        "forced": sorted({e.entry.model for e in _with_variants(planner)}),
        "tuning": sorted({e.tuned_from for e in experiments if e.tuned_from}),
        "diagnostics": sorted(planner.config.diagnostics),
        "cures": sorted(planner.config.cures),
        "report": [DEFAULT_REPORT, *sorted(planner.config.reports)],
    }


def target_of(view: str, name: str) -> str:
    """The file that shows a view."""
    if view != "report":
        return f"results/{view}/{name}.csv"
    return "results/report.html" if name == DEFAULT_REPORT else f"results/reports/{name}.html"


def targets_of(planner: Planner, name: str) -> list[str]:
    """What the target NAME of `reports` makes: the report, and every table of what it shows."""
    report = _entry(planner, name)
    tables = [(view, e) for view in ("ood", "epistemic", "curves") for e in report.experiments]
    tables += [(view, model) for view in SECTIONS for model in getattr(report, view)]
    return [target_of("report", name), *(target_of(view, shown) for view, shown in tables)]


def unknown_target(planner: Planner, target: str) -> UserError:
    """The error for a target that does not exist, with the nearest one and all that do."""
    names = view_names(planner)
    targets = [target_of(view, name) for view, known in names.items() for name in known]
    if target in planner.experiments:
        own = ", ".join(target_of(view, target) for view, known in names.items() if target in known)
        return UserError(f"`{target}` is an experiment; its targets are {own}.")
    by_names: dict[tuple[str, ...], list[str]] = {}
    for view in TABLES:
        by_names.setdefault(tuple(names[view]), []).append(target_of(view, "NAME"))
    listed = [f"{', '.join(paths)} with NAME one of {', '.join(known)}" for known, paths in by_names.items() if known]
    reports = [target_of("report", name) for name in names["report"]]
    every = "; ".join([", ".join(reports), *planner.config.reports, *listed])
    return UserError(f"there is no target `{target}`.{nearest(target, targets)} Targets: {every}.")


def _evaluated(planner: Planner, plan: ViewPlan, name: str) -> None:
    evaluation_rows(planner, plan, get(planner.experiments, name))
    plan.header["lexicon"] = planner.config.lexicon


def _trained(planner: Planner, plan: ViewPlan, name: str) -> None:
    training_rows(planner, plan, get(planner.experiments, name))


def _richness(planner: Planner, plan: ViewPlan, name: str) -> None:
    if name not in planner.config.richness:
        raise unknown("model with a richness table", name, planner.config.richness)
    for kind, rollouts in planner.richness(name).items():
        plan.rows.append(
            {
                "kind": "richness",
                "model": name,
                "context": kind,
                "rollouts_artifact": plan.use(rollouts, name),
                "epistemics_artifact": plan.use(planner.epistemics(rollouts), name),
            }
        )


def _sft(planner: Planner, plan: ViewPlan, name: str) -> None:
    experiments = planner.experiments.values()
    chosen = [e for e in experiments if e.entry.model == name and e.method.trains_on and not e.tuned_from]
    if not chosen:
        raise unknown("model with SFT experiments", name, view_names(planner)["sft"])
    for experiment in chosen:
        evaluation_rows(planner, plan, experiment)


def _coverage(planner: Planner, plan: ViewPlan, name: str) -> None:
    swept = [e for e in planner.experiments.values() if e.entry.model == name and e.swept_from]
    if not swept:
        raise unknown("model with a coverage sweep", name, view_names(planner)["coverage"])
    parents = [planner.experiments[e.swept_from] for e in swept if e.swept_from]
    for experiment in {e.name: e for e in [*swept, *parents]}.values():
        training_rows(planner, plan, experiment)
        evaluation_rows(planner, plan, experiment)


def _tuning(planner: Planner, plan: ViewPlan, name: str) -> None:
    tuned = [e for e in planner.experiments.values() if e.tuned_from == name]
    if not tuned:
        raise unknown("experiment with a sweep", name, view_names(planner)["tuning"])
    for experiment in [planner.experiments[name], *tuned]:
        evaluation_rows(planner, plan, experiment)
    for row in plan.rows:
        row["tuned_from"] = name


def _diagnostics(planner: Planner, plan: ViewPlan, name: str) -> None:
    if name not in planner.config.diagnostics:
        raise unknown("model with diagnostics", name, planner.config.diagnostics)
    table = planner.config.diagnostics[name]
    for experiment in (get(planner.experiments, listed) for listed in table.experiments):
        for benchmark in table.benchmarks:
            for seed, evaluation, found in planner.diagnostics(name, experiment, benchmark):
                plan.rows.append(
                    {
                        **about_experiment(experiment),
                        "kind": "diagnostics",
                        "seed": seed,
                        "benchmark": benchmark,
                        "evaluate_artifact": plan.use(evaluation, experiment.name),
                        "diagnostics_artifact": plan.use(found, experiment.name),
                    }
                )


def _entry(planner: Planner, name: str) -> ReportEntry:
    if name == DEFAULT_REPORT:
        return planner.config.report
    if name not in planner.config.reports:
        raise unknown("report", name, view_names(planner)["report"])
    return planner.config.reports[name]


def _with_variants(planner: Planner) -> list[Experiment]:
    """Without what sweeps made of them: a report knows those by the experiment they came from."""
    return [e for e in planner.experiments.values() if e.entry.variants and not e.swept_from and not e.tuned_from]


def _forced(planner: Planner, plan: ViewPlan, name: str) -> None:
    """The experiments of a model that have variants, in the plain way and in these."""
    chosen = [e for e in _with_variants(planner) if e.entry.model == name]
    if not chosen:
        raise unknown("model whose experiments have variants", name, view_names(planner)["forced"])
    for experiment in chosen:
        for variant in (None, *experiment.entry.variants):
            evaluation_rows(planner, plan, experiment, variant)


def _cures(planner: Planner, plan: ViewPlan, name: str) -> None:
    """The experiments of a leaderboard, in the plain way and in their first variant."""
    if name not in planner.config.cures:
        raise unknown("model with a leaderboard", name, planner.config.cures)
    entry = planner.config.cures[name]
    for listed in entry.experiments:
        if listed not in planner.experiments:
            problem: object = unknown("experiment", listed, planner.experiments)
        elif (model := planner.experiments[listed].entry.model) != name:
            problem = f"{listed} is an experiment on {model}, not on {name}."
        else:
            experiment = planner.experiments[listed]
            first = len(plan.rows)
            training_rows(planner, plan, experiment)
            for variant in (None, *experiment.entry.variants[:1]):
                evaluation_rows(planner, plan, experiment, variant)
            about = {
                "is_control": listed in entry.controls,
                "has_second_network": experiment.method.second_network is not None,
            }
            plan.rows[first:] = [row | about for row in plan.rows[first:]]
            continue
        raise SettingError.at("cures", name, "experiments", problem=problem)


def _report(planner: Planner, plan: ViewPlan, name: str) -> None:
    report = _entry(planner, name)
    place = ("report",) if name == DEFAULT_REPORT else ("reports", name)
    if not any((report.experiments, *(getattr(report, section) for section in SECTIONS))):
        raise SettingError.at(*place, "experiments", problem="is empty: name at least one experiment.")
    known = view_names(planner)
    for section, view in (("experiments", "ood"), *((section, section) for section in SECTIONS)):
        for listed in getattr(report, section):
            if listed not in known[view]:
                kind = "experiment" if view == "ood" else f"name with a {section} table"
                raise SettingError.at(*place, section, problem=unknown(kind, listed, known[view]))
    for experiment in report.experiments:
        training_rows(planner, plan, get(planner.experiments, experiment))
        evaluation_rows(planner, plan, get(planner.experiments, experiment))
    for section in SECTIONS:
        for shown in getattr(report, section):
            part = ViewPlan(section, shown)
            VIEWS[section](planner, part, shown)
            plan.rows += [{**row, "section": section} for row in part.rows]
            plan.nodes |= part.nodes
            for node, users in part.users.items():
                plan.users.setdefault(node, set()).update(users)
    if report.compare:
        plan_pairs(planner, plan, report.compare, place)
    plan.header["lexicon"] = planner.config.lexicon
    plan.header["experiments"] = report.experiments
    plan.header["trained_on"] = {
        name: planner.trained_on(planner.experiments[name]).name for name in report.experiments
    }


VIEWS: dict[str, Callable[[Planner, ViewPlan, str], None]] = {
    "ood": _evaluated,
    "epistemic": _evaluated,
    "curves": _trained,
    "richness": _richness,
    "sft": _sft,
    "coverage": _coverage,
    "forced": _forced,
    "tuning": _tuning,
    "diagnostics": _diagnostics,
    "cures": _cures,
    "report": _report,
}
#: Views that are tables: `results/<view>/<name>.csv`.
TABLES = tuple(view for view in VIEWS if view != "report")
