"""The MLflow experiments: which runs stand together, and how the training runs are first shown."""

from __future__ import annotations

import json
from collections.abc import Iterable

from selfdistill.tracking.records import Record

#: Names of the MLflow experiments, one per group of runs.
EXPERIMENTS = {
    "training": "selfdistill training",
    "evaluation": "selfdistill evaluation",
    "data": "selfdistill data",
    "results": "selfdistill results",
}
#: Group of each stage; the others are data.
GROUPS = {"pretrain": "training", "model": "training", "train": "training",
          "evaluate": "evaluation", "epistemics": "evaluation"}  # fmt: skip
_NOTES = {
    "evaluation": "Evaluated checkpoints, and the epistemic words counted in them.",
    "data": "Data sets, samples, prompts, rollouts, teacher contexts, SFT data.",
    "results": "Tables and the report, as files of one run.",
}
_VIEW = "methods"
#: A view of the runs table that the UI opens with `viewStateShareKey`; its own "share" button writes the same tag.
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_COLUMNS = ("avg_at_k", "mean_length", "epistemic_density_per_1k_tokens")


def methods_page(experiment_id: str) -> str:
    """Address, below that of the server, of the page that compares the methods."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}&workflowType=machine_learning"


def note(group: str, experiment_id: str) -> str:
    """What stands on top of an experiment's page."""
    if group != "training":
        return _NOTES[group]
    return (
        f"Base models and training runs. [Methods, seeds and scores side by side]({methods_page(experiment_id)}). "
        "Evaluations are `BENCHMARK/METRIC`, the base model at step 0. One experiment: `tags.experiment = 'toy_sdpo'`. "
        "Checkpoints with their origin: *Models*."
    )


def methods_view(records: Iterable[Record]) -> str:
    """State of the runs table: all runs, by method, with the scores on every data set that was evaluated."""
    names = {s.name for r in records if r.group == "training" for p in r.parts.values() for s in p.scalars}
    scores = [f"metrics.`{name}`" for name in sorted(names) if name.rpartition("/")[2] in _COLUMNS and "/" in name]
    state = {
        "selectedColumns": ["tags.`method`", "params.`seed`", *scores],
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
