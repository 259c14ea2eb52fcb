"""The MLflow experiments: which runs stand together, and how the training runs are first shown."""

from __future__ import annotations

import json
from collections.abc import Iterable

from selfdistill.tracking.run_records import Record

#: Names of the MLflow experiments, one per group of runs.
EXPERIMENTS = {
    "training": "selfdistill training",
    "evaluation": "selfdistill evaluation",
    "data": "selfdistill data",
    "results": "selfdistill results",
}
#: Group of each stage; the others are data.
GROUPS = {"pretrain": "training", "model": "training", "train": "training",
          "evaluate": "evaluation", "epistemics": "evaluation",
          "diagnostics": "evaluation"}  # fmt: skip
_NOTES = {
    "training": "Base models and training runs. [Methods, seeds and scores side by side]({page}). Evaluations are "
    "`BENCHMARK/METRIC`, the base model at step 0. One experiment: `tags.experiment = 'toy_sdpo'`. "
    "Checkpoints with their origin: *Models*.",
    "evaluation": "Evaluated checkpoints, and the epistemic words counted in them. [Scores by benchmark]({page}). "
    "Completions to read: `samples.json` of a run.",
    "data": "Data sets, samples, prompts, rollouts, teacher contexts, SFT data.",
    "results": "Tables and the report, as files of one run.",
}
_VIEW = "methods"
#: A view of the runs table that the UI opens with `viewStateShareKey`; its own "share" button writes the same tag.
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
#: Columns of the evaluation runs, and of these the ones that training runs show for each benchmark.
_SCORES = ("avg_at_k", "pass_at_k", "mean_length", "truncation_rate", "epistemic_count",
           "epistemic_density_per_1k_tokens")  # fmt: skip
_TRAINING_SCORES = ("avg_at_k", "mean_length", "epistemic_density_per_1k_tokens")


def note(group: str, experiment_id: str) -> str:
    """Text on top of an experiment's page, with the address of its prepared view below that of the server."""
    page = f"#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}&workflowType=machine_learning"
    return _NOTES[group].format(page=page)


def score_views(records: Iterable[Record]) -> dict[str, str]:
    """State of the runs tables, by experiment: all runs, by method, with the scores of every benchmark."""
    names = {s.name for r in records if r.group == "training" for part in r.parts.values() for s in part.scalars}
    shown = [name for name in sorted(names) if "/" in name and name.rpartition("/")[2] in _TRAINING_SCORES]
    return {
        "training": _view(["tags.`method`", "params.`seed`", *(f"metrics.`{name}`" for name in shown)]),
        "evaluation": _view(
            ["tags.`method`", "tags.`seed`", "tags.`benchmark`", *(f"metrics.`{name}`" for name in _SCORES)]
        ),
    }


def _view(columns: list[str]) -> str:
    state = {
        "selectedColumns": columns,
        "orderByKey": "tags.`method`",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        **dict.fromkeys(("runsExpanded", "runsVisibilityMap", "columnWidths", "groupsExpanded"), {}),
        **dict.fromkeys(("runsPinned", "runsHidden", "columnOrder", "datasetsFilter"), []),
        **dict.fromkeys(("viewMaximized", "runListHidden", "isAccordionReordered"), False),
        **dict.fromkeys(("useGroupedValuesInCharts", "hideEmptyCharts", "autoRefreshEnabled"), True),
        "searchFilter": "",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "groupBy": None,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    return json.dumps(state, sort_keys=True)
