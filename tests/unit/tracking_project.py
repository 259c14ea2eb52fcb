"""A tiny project with artifacts as the stages leave them, and the content of its MLflow store."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from selfdistill.artifacts.provenance import NAMES_FILE
from selfdistill.artifacts.store import Artifact, all_artifacts, find
from selfdistill.artifacts.tables import PROMPTS, ROLLOUTS, write_rows
from selfdistill.files import pretty_json, write_atomically
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.stages import TrainSpec
from selfdistill.tracking import Report, TrackingStore, track

_SAMPLING = {"max_tokens": 16}
TOY = {"kind": "toy", "families": ["id"]}
CONFIG: dict[str, Any] = {
    "questions": {"plain": "{question}"},
    "reprompts": {
        name: {"frame": "{prompt}{solution}", "solution": " {successful_previous_attempt}"}
        for name in ("training", "analysis")
    },
    "lexicon": ["wait"],
    "datasets": {"drill": {"source": {**TOY, "count": 4}}, "exam": {"source": {**TOY, "count": 2}}},
    "models": {
        "tiny": {
            "pretrain": {"steps": 2, "optimiser": {"learning_rate": 1e-3}, "max_final_loss": 9.0},
            "question": "plain",
            "engine": "torch",
            "max_positions": 64,
            "max_prompt_tokens": 32,
            **{f"{use}_sampling": _SAMPLING for use in ("training", "evaluation", "analysis")},
        }
    },
    "benchmarks": {"exam": {"dataset": "exam", "domain": "ood", "samples": 2}},
    "recipes": {
        name: {
            "method": {"name": name},
            "steps": 4,
            "prompts_per_step": 2,
            "prompts_per_update": 2,
            "optimiser": {"learning_rate": 1e-3},
            "checkpoint_every": 2,
        }
        for name in ("grpo", "sdpo")
    },
    "experiments": {
        f"tiny_{name}": {
            "model": "tiny",
            "recipe": name,
            "dataset": "drill",
            "benchmarks": ["exam"],
            "seeds": [1] if name == "grpo" else [0],
            "evaluate": "all",
        }
        for name in ("grpo", "sdpo")
    },
}
PREPARE = TrackingStore.prepare
COMMIT = "c" * 40
REWARDS = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


def plan(config: dict[str, Any] = CONFIG) -> None:
    for name in config["experiments"]:
        Workspace(config).view_inputs("ood", name)


def fill(artifact: Artifact, *, seal: bool = True, reward: float = 0.5) -> None:
    """A payload, numbers and provenance as the stages leave them."""
    for upstream in artifact.input_ids.values():
        if not Artifact(find(upstream)).is_sealed:
            fill(Artifact(find(upstream)))
    params, folder = artifact.frozen_spec["params"], artifact.payload
    summary: dict[str, Any] = {"rows": 3}
    if artifact.stage == "train":
        write_metrics(artifact, range(1, 5))
        for step in range(1, 5):
            write_atomically(folder / TrainSpec.rollouts_file(step), f"{artifact.key} {step}")
        for step in (2, 4):
            write_atomically(folder / f"checkpoints/step-{step}/config.json", "{}")
            write_atomically(folder / f"checkpoints/step-{step}/weights", f"{artifact.key} {step}")
    elif artifact.stage == "pretrain":
        write_atomically(folder / "model/config.json", "{}")
    elif artifact.stage == "evaluate":
        summary = {f"step-{step}": scores(round(100 * reward) + step) for step in params["steps"]}
        write_completions(artifact)
    write_atomically(folder / "table", artifact.key)
    write_provenance(artifact, sealed=seal)
    if seal:
        artifact.seal(summary)


def write_completions(artifact: Artifact) -> None:
    """Two problems, two completions each, at every step."""
    prompts = [{**dict.fromkeys(PROMPTS), "row_id": row, "question": f"What is {row}?"} for row in range(2)]
    write_rows(Artifact(find(artifact.input_ids["prompts"])).payload / "prompts.parquet", prompts, PROMPTS)
    rows = [
        {**dict.fromkeys(ROLLOUTS), "step": step, "row_id": row, "sample": sample, "problem_id": f"p{row}",
         "completion": f"{row} {sample} at {step} " + "x" * 5000 * row}
        for step in artifact.frozen_spec["params"]["steps"] for row in range(2) for sample in range(2)
    ]  # fmt: skip
    write_rows(artifact.payload / "rollouts.parquet", rows, ROLLOUTS)


def scores(correct: int) -> dict[str, Any]:
    return {"completions": 100, "mean_tokens": 7.5, "outcomes": {"correct": correct, "wrong": 100 - correct}}


def write_metrics(artifact: Artifact, steps: range, offset: float = 0.0) -> None:
    rows = [{"step": s, "reward_mean": REWARDS[s] + offset, "seconds_step": 2.0} for s in steps]
    write_atomically(artifact.metrics, "".join(json.dumps(row) + "\n" for row in rows))


def write_provenance(artifact: Artifact, *, sealed: bool) -> None:
    names = artifact.folder / NAMES_FILE
    attempt = {
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00" if sealed else None,
        "sealed": sealed,
        "commit": COMMIT,
        "dirty": None,
        "names": json.loads(names.read_text()) if names.is_file() else {},
        "host": "here",
        "user": "me",
    }
    write_atomically(artifact.folder / "provenance.json", pretty_json({"attempts": [attempt]}))


def of_stage(stage: str) -> list[Artifact]:
    return [artifact for artifact in all_artifacts() if artifact.stage == stage]


def quietly(**options: Any) -> Report:
    return track(say=lambda _: None, **options)


def client_of_copy() -> Any:
    """A client on a copy of the database: MLflow keeps connections to a path, whatever file is there by now."""
    from mlflow import MlflowClient

    copy = Path(f"{uuid.uuid4().hex}.db")
    shutil.copy("results/mlflow/mlflow.db", copy)
    return MlflowClient(f"sqlite:///{copy.resolve()}")


def content() -> dict[str, Any]:
    """Everything active in the store, without the ids that MLflow makes up."""
    client = client_of_copy()
    experiments = {e.experiment_id: e.name for e in client.search_experiments() if e.name != "Default"}
    models = {m.model_id: m for m in client.search_logged_models(list(experiments))}
    runs = client.search_runs(list(experiments), max_results=1000)
    names = {run.info.run_id: run.data.tags["artifact"] for run in runs}
    found: dict[str, Any] = {}
    for run in runs:
        info, data = run.info, run.data
        assert names[info.run_id] not in found, "two active runs of one artifact"
        found[names[info.run_id]] = {
            "experiment": experiments[info.experiment_id],
            "info": [info.run_name, info.status, info.start_time, info.end_time],
            "params": data.params,
            "tags": data.tags,
            "metrics": {
                name: sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(info.run_id, name))
                for name in data.metrics
            },
            "datasets": sorted((d.dataset.name, d.dataset.digest, d.tags[0].value) for d in run.inputs.dataset_inputs),
            "uses": sorted(models[m.model_id].tags["id"] for m in run.inputs.model_inputs),
            "makes": sorted((models[m.model_id].tags["id"], m.step) for m in run.outputs.model_outputs),
            "files": sorted(item.path for item in client.list_artifacts(info.run_id)),
        }
    for model in models.values():
        metrics = sorted(
            (m.key, m.step, m.value, m.dataset_name, names.get(m.run_id, "a deleted run")) for m in model.metrics or []
        )
        found[model.tags["id"]] = [model.name, model.model_type, model.params, model.tags, metrics]
    return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables and no runs: twelve seconds of migrations, once."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    TrackingStore.choose().prepare(f"sqlite:///{path}")
    return path


def use(folder: Path, database: Path, patch: pytest.MonkeyPatch) -> None:
    def copy(_: TrackingStore, uri: str) -> None:
        shutil.copy(database, uri.removeprefix("sqlite:///"))

    patch.chdir(folder)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setattr(TrackingStore, "prepare", copy)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    """A planned project without results."""
    use(tmp_path, database, monkeypatch)
    plan()
