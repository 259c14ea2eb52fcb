"""The MLflow index: equal when written twice, equal when rebuilt, and enough to know where a checkpoint came from."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from selfdistill.artifacts.store import ROOT, Artifact, all_artifacts
from selfdistill.files import canonical_json, pretty_json, sha256_text, write_atomically
from selfdistill.schema.errors import without_password
from selfdistill.tracking import TrackingError, TrackingStore, builder, track
from selfdistill.tracking.naming import Label
from selfdistill.tracking.run_records import MOST_PARAM, OUR_TAGS, MetricsLog, flatten, legal
from selfdistill.tracking.survey import Survey
from tracking_project import (
    COMMIT,
    CONFIG,
    PREPARE,
    REWARDS,
    TOY,
    client_of_copy,
    content,
    fill,
    of_stage,
    plan,
    quietly,
    use,
    write_metrics,
)  # fmt: skip


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """A finished project, tracked."""
    folder = tmp_path_factory.mktemp("master")
    with pytest.MonkeyPatch.context() as patch:
        use(folder, database, patch)
        plan()
        for artifact in all_artifacts():
            if not artifact.is_sealed:
                fill(artifact)
        write_atomically(Path("results/ood/tiny_grpo.csv"), "a,b\n")
        write_atomically(Path("results/report.html"), "<p>report</p>")
        quietly()
    return folder


@pytest.fixture
def tracked(master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    """A finished project that MLflow knows."""
    shutil.copytree(master, tmp_path, dirs_exist_ok=True)
    use(tmp_path, database, monkeypatch)


@pytest.fixture
def project(tracked: None) -> None:
    """A finished project that MLflow does not know."""
    shutil.rmtree("results/mlflow")


def test_tracking_twice_changes_nothing(tracked: None) -> None:
    quietly()
    assert quietly().is_unchanged
    before = content()
    again = quietly(everything=True)
    assert again.runs == len(all_artifacts()) + 1
    assert (again.created, again.updated, again.replaced, again.removed, again.points) == (0, 0, 0, 0, 0)
    assert content() == before


def test_a_project_without_results_gets_no_store(empty: None) -> None:
    said: list[str] = []
    track(say=said.append)
    assert said == ["MLflow: there is nothing to show yet."]
    assert not Path("results/mlflow/mlflow.db").exists()


def test_a_deleted_store_is_rebuilt_equal(tracked: None) -> None:
    before = content()
    assert before["views/results"]["files"] == ["ood", "report.html"]
    shutil.rmtree("results/mlflow")
    quietly()
    assert content() == before


def test_runs_have_the_names_people_use(tracked: None) -> None:
    names = {run["info"][0]: run for run in content().values() if isinstance(run, dict)}
    assert {"tiny_grpo seed 1", "tiny_sdpo seed 0", "tiny", "tiny on exam"} <= set(names)
    assert {"tiny_sdpo seed 0 on exam", "words: tiny_sdpo seed 0 on exam"} <= set(names)
    trained = names["tiny_sdpo seed 0"]
    assert trained["tags"]["method"] == "sdpo (solution)"
    assert trained["tags"]["seed"] == "0"
    assert names["tiny"]["tags"]["method"] == "base"
    assert trained["tags"]["experiment"] == "tiny_sdpo"
    assert trained["params"]["optimiser.learning_rate"] == "0.001"
    shown = {name for run in names.values() for name in run["tags"] if not name.startswith("mlflow.")}
    assert shown <= OUR_TAGS


def test_training_shows_metrics_by_step_and_what_evaluations_say(tracked: None) -> None:
    found = content()
    run = next(r for r in found.values() if isinstance(r, dict) and r["info"][0] == "tiny_grpo seed 1")
    started = run["info"][2]
    assert run["metrics"]["reward_mean"] == [(s, started + 2000 * s, REWARDS[s]) for s in (1, 2, 3, 4)]
    assert [(step, value) for step, _, value in run["metrics"]["exam/avg_at_k"]] == [(0, 0.5), (2, 0.52), (4, 0.54)]
    artifact = run["tags"]["artifact"]
    shown = {metric[:4] for metric in found[f"{artifact}@4"][4]}
    assert {("avg_at_k", 4, 0.54, "id-2"), ("mean_length", 4, 7.5, "id-2")} <= shown
    assert not any("outcomes" in name for name, *_ in shown)


def test_scores_of_the_base_that_come_late_are_added(tracked: None) -> None:
    evaluation = next(a for a in of_stage("evaluate") if a.frozen_spec["params"]["steps"] == [0])
    words = next(a for a in of_stage("epistemics") if a.input_ids["rollouts"] == f"evaluate/{evaluation.key}")
    for artifact in (words, evaluation):
        artifact.unseal()
    shutil.rmtree("results/mlflow")
    quietly()
    trained = f"train/{of_stage('train')[0].key}"
    assert [step for step, _, _ in content()[trained]["metrics"]["exam/avg_at_k"]] == [2, 4]
    fill(evaluation)
    fill(words)
    report = quietly()
    assert report.replaced == 0
    now = content()
    assert [step for step, _, _ in now[trained]["metrics"]["exam/avg_at_k"]] == [0, 2, 4]
    shutil.rmtree("results/mlflow")
    quietly()
    assert content() == now


def test_new_lines_of_an_unfinished_run_are_appended(empty: None) -> None:
    artifact = of_stage("train")[0]
    fill(artifact, seal=False)
    write_metrics(artifact, range(1, 3))
    with artifact.metrics.open("a") as stream:
        stream.write('{"step": 3, "rew')
    assert quietly().points
    run = content()[f"train/{artifact.key}"]
    assert run["info"][1] == "KILLED"
    assert [step for step, _, _ in run["metrics"]["reward_mean"]] == [1, 2]

    write_metrics(artifact, range(1, 5))
    report = quietly()
    assert (report.updated, report.replaced, report.points) == (1, 0, 4)
    run = content()[f"train/{artifact.key}"]
    assert [step for step, _, _ in run["metrics"]["reward_mean"]] == [1, 2, 3, 4]

    fill(artifact)
    report = quietly()
    assert (report.updated, report.replaced) == (1, 0)
    run = content()[f"train/{artifact.key}"]
    assert run["info"][1] == "FINISHED"
    assert [step for _, step in run["makes"]] == [2, 4]
    before = content()
    shutil.rmtree("results/mlflow")
    quietly()
    assert content() == before


def test_a_run_that_resumed_from_an_earlier_state_shows_no_step_twice(empty: None) -> None:
    artifact = of_stage("train")[0]
    fill(artifact, seal=False)
    write_metrics(artifact, range(1, 4))
    quietly()
    write_metrics(artifact, range(1, 3))
    rows = artifact.metrics.read_text() + '{"step": 3, "reward_mean": 0.9}\n'
    write_atomically(artifact.metrics, rows)
    assert quietly().replaced == 1
    run = content()[f"train/{artifact.key}"]
    assert [(step, value) for step, _, value in run["metrics"]["reward_mean"]] == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_a_job_that_holds_its_lock_is_shown_as_running(empty: None) -> None:
    from filelock import FileLock

    artifact = of_stage("train")[0]
    fill(artifact, seal=False)
    with FileLock(artifact.folder / ".lock"):
        quietly()
    assert content()[f"train/{artifact.key}"]["info"][1] == "RUNNING"
    assert quietly().updated == 1
    assert content()[f"train/{artifact.key}"]["info"][1] == "KILLED"


def test_discarded_and_remade_artifacts_leave_no_old_numbers(tracked: None) -> None:
    old = content()
    evaluation = next(a for a in of_stage("evaluate") if a.frozen_spec["params"]["steps"] == [2, 4])
    words = next(a for a in of_stage("epistemics") if a.input_ids["rollouts"] == f"evaluate/{evaluation.key}")
    for artifact in (words, evaluation):
        artifact.unseal()
    report = quietly()
    assert report.removed == 2
    now = content()
    trained = now[evaluation.input_ids["model"]]
    assert f"evaluate/{evaluation.key}" not in now
    assert "exam/avg_at_k" not in trained["metrics"]
    assert not now[f"{evaluation.input_ids['model']}@4"][4]

    for artifact in (evaluation, words):
        fill(artifact, reward=0.9)
    quietly()
    now = content()
    assert [m[2] for m in now[f"{evaluation.input_ids['model']}@4"][4] if m[0] == "avg_at_k"] == [0.94]
    assert set(now) == set(old)
    shutil.rmtree("results/mlflow")
    quietly()
    assert content() == now


def sdpo() -> Artifact:
    return next(a for a in of_stage("train") if a.frozen_spec["params"]["method"]["name"] == "sdpo")


def changed_config() -> dict[str, Any]:
    changed = json.loads(json.dumps(CONFIG))
    changed["recipes"]["sdpo"]["optimiser"]["learning_rate"] = 5e-4
    return changed


def test_a_dry_run_with_an_edited_config_renames_nothing(tracked: None) -> None:
    before = content()
    plan(changed_config())
    renamed = json.loads(json.dumps(CONFIG))
    renamed["experiments"]["other"] = renamed["experiments"].pop("tiny_sdpo")
    plan(renamed)
    assert quietly().updated == 0
    assert content() == before
    shutil.rmtree("results/mlflow")
    quietly()
    assert content() == before


def test_an_edit_a_dry_run_a_run_and_the_way_back_leave_the_names_right(tracked: None) -> None:
    old, before = sdpo(), content()
    plan(changed_config())
    fresh = [artifact for artifact in all_artifacts() if not artifact.is_sealed]
    assert {artifact.stage for artifact in fresh} == {"train", "evaluate", "epistemics"}
    (new,) = (artifact for artifact in fresh if artifact.stage == "train")
    plan()
    for artifact in fresh:
        if not artifact.is_sealed:
            fill(artifact)
    report = quietly()
    assert (report.created, report.replaced, report.removed) == (3, 0, 0)
    now = content()
    assert now[f"train/{old.key}"]["info"][0] == "tiny_sdpo seed 0 (learning_rate=0.001)"
    assert now[f"train/{new.key}"]["info"][0] == "tiny_sdpo seed 0 (learning_rate=0.0005)"
    assert now[f"train/{new.key}"]["tags"]["experiment"] == "tiny_sdpo"
    names = sorted(run["info"][0] for run in now.values() if isinstance(run, dict))
    assert "words: tiny_sdpo seed 0 on exam (learning_rate=0.0005)" in names
    assert {run["info"][0] for run in before.values() if isinstance(run, dict)} - set(names) == {
        "tiny_sdpo seed 0", "tiny_sdpo seed 0 on exam", "words: tiny_sdpo seed 0 on exam",
    }  # fmt: skip
    tags = [state[f"train/{old.key}"]["tags"].items() for state in (before, now)]
    assert len({tuple(sorted((n, v) for n, v in t if not n.startswith("mlflow."))) for t in tags}) == 1
    shutil.rmtree("results/mlflow")
    quietly()
    assert content() == now


def test_a_job_that_starts_after_the_config_was_edited_has_the_names_of_its_own_plan(empty: None) -> None:
    waiting = sdpo()
    plan(changed_config())
    fill(waiting)
    quietly()
    assert content()[f"train/{waiting.key}"]["info"][0] == "tiny_sdpo seed 0"


def test_artifacts_made_before_names_were_recorded_have_those_of_the_plans(tracked: None) -> None:
    def names() -> dict[str, Any]:
        return {name: run["info"][0] for name, run in content().items() if isinstance(run, dict)}

    before = names()
    for artifact in all_artifacts():
        path = artifact.folder / "provenance.json"
        attempts = json.loads(path.read_text())["attempts"]
        for attempt in attempts:
            del attempt["names"]
        write_atomically(path, pretty_json({"attempts": attempts}))
    quietly()
    assert names() == before


def test_benchmarks_on_data_sets_of_one_name_are_different_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    use(tmp_path, database, monkeypatch)
    config = json.loads(json.dumps(CONFIG))
    for seed in (1, 2):
        config["datasets"][f"mine{seed}"] = {"source": {**TOY, "count": 2, "seed": seed}}
        config["benchmarks"][f"mine{seed}"] = {"dataset": f"mine{seed}", "domain": "ood", "samples": 2}
        for experiment in config["experiments"].values():
            experiment["benchmarks"].append(f"mine{seed}")
    plan(config)
    assert len({a.slug for a in of_stage("dataset") if a.frozen_spec["params"]["source"]["count"] == 2}) == 1
    for number, artifact in enumerate(of_stage("evaluate")):
        fill(artifact, reward=0.1 + number / 100)
    quietly()
    run = content()[f"train/{sdpo().key}"]
    shown = {name: values for name, values in run["metrics"].items() if name.endswith("avg_at_k")}
    assert set(shown) == {"exam/avg_at_k", "mine1/avg_at_k", "mine2/avg_at_k"}
    assert all([step for step, _, _ in values] == [0, 2, 4] for values in shown.values())


def test_a_benchmark_that_was_changed_under_its_name_is_another_metric(tracked: None) -> None:
    changed = json.loads(json.dumps(CONFIG))
    changed["benchmarks"]["exam"]["samples"] = 3
    plan(changed)
    for artifact in of_stage("evaluate"):
        if not artifact.is_sealed:
            fill(artifact, reward=0.7)
    quietly()
    shown = {n: v for n, v in content()[f"train/{sdpo().key}"]["metrics"].items() if n.endswith("avg_at_k")}
    assert len(shown) == 2 and all(re.fullmatch("exam:[0-9a-f]{6}/avg_at_k", name) for name in shown)
    assert sorted(values[-1][2] for values in shown.values()) == [0.54, 0.74]
    assert all(len(values) == 3 for values in shown.values())


def test_an_interrupted_write_is_repaired_and_notes_of_people_stay(tracked: None) -> None:
    from mlflow import MlflowClient

    from selfdistill.tracking.index import MARK

    before = content()
    client = MlflowClient(TrackingStore.choose().uri)
    artifact = of_stage("train")[0]
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.artifact = 'train/{artifact.key}'")
    mark = json.loads(run.data.tags[MARK])
    client.set_tag(run.info.run_id, MARK, json.dumps({"links": mark["links"], "measures": mark["measures"]}))
    client.set_tag(run.info.run_id, "mlflow.note.content", "the one in figure 2")
    report = quietly(everything=True)
    assert report.replaced >= 1
    after = content()
    assert after[f"train/{artifact.key}"]["tags"].pop("mlflow.note.content") == "the one in figure 2"
    assert after == before


def test_notes_of_people_survive_a_writer_that_is_killed_before_the_run_is_back(tracked: None, monkeypatch) -> None:
    from mlflow import MlflowClient

    from selfdistill.tracking.index import MARK, Index

    store = TrackingStore.choose()
    client = MlflowClient(store.uri)
    artifact = of_stage("train")[0]
    experiments = [e.experiment_id for e in client.search_experiments()]
    of_artifact = f"tags.artifact = 'train/{artifact.key}'"
    (run,) = client.search_runs(experiments, of_artifact)
    client.set_tag(run.info.run_id, MARK, json.dumps({"links": [], "measures": []}))
    client.set_tag(run.info.run_id, "mlflow.note.content", "the one in figure 2")

    class Killed(BaseException):
        pass

    def create(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as during:
        during.setattr(Index, "create", create)
        with pytest.raises(Killed):
            quietly(everything=True)
    assert not client.search_runs(experiments, of_artifact)
    quietly(everything=True)
    (run,) = client.search_runs(experiments, of_artifact)
    assert run.data.tags["mlflow.note.content"] == "the one in figure 2"
    assert store.kept_tags() == {}


@pytest.mark.slow
def test_tracking_killed_at_twenty_random_moments_gives_the_same_store(
    tracked: None, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kill goes on from what the one before left; a store that was finished is deleted and begun again."""
    before = content()

    def prepare(_: TrackingStore, uri: str) -> None:
        """As MLflow does: nothing to a database that has its tables; SQLite drops the journal of an earlier file."""
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            Path(f"{path}-journal").unlink(missing_ok=True)
            shutil.copy(database, path)

    monkeypatch.setattr(TrackingStore, "prepare", prepare)

    def tracking() -> multiprocessing.Process:
        child = multiprocessing.get_context("fork").Process(target=quietly)
        child.start()
        return child

    shutil.rmtree("results/mlflow")
    started = time.monotonic()
    tracking().join()
    whole = time.monotonic() - started
    shutil.rmtree("results/mlflow")
    moments = random.Random(0)
    killed = 0
    while killed < 20:
        child = tracking()
        child.join(moments.uniform(0.05, 0.9) * whole)
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        if child.exitcode == 0 or killed % 5 == 0:
            quietly()
            assert content() == before
            shutil.rmtree("results/mlflow")
    quietly()
    assert content() == before


def test_two_processes_at_once_write_one_store(project: None, database: Path) -> None:
    code = (
        "import shutil, sys\n"
        "from selfdistill.tracking import TrackingStore, track\n"
        "TrackingStore.prepare = lambda _, uri: shutil.copy(sys.argv[1], uri.removeprefix('sqlite:///'))\n"
        "track()\n"
    )
    command = [sys.executable, "-c", code, str(database)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("is up to date" in out for out, _ in said) == 1
    assert sum("holds" in out for out, _ in said) == 1
    assert quietly().is_unchanged
    assert quietly(everything=True).created == 0


def test_nothing_changed_is_found_out_without_importing_mlflow(tracked: None) -> None:
    quietly()
    code = "import sys; from selfdistill.tracking import track; track(); print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["MLflow: results/mlflow/mlflow.db is up to date.", "False"]


def test_lineage_of_every_checkpoint_is_recovered_from_mlflow_alone(tracked: None) -> None:
    from mlflow_lineage import checkpoints

    runs = {f"train/{a.key}": a for a in of_stage("train")}
    expected = {name: Artifact(a.folder).manifest for name, a in runs.items()}
    datasets = {a.slug: f"dataset/{a.key}" for a in of_stage("dataset")}
    (base,) = of_stage("pretrain")
    store = TrackingStore.choose()
    shutil.move("results/artifacts", "elsewhere")
    found = checkpoints(store)
    assert sorted((c.artifact, c.step) for c in found) == sorted((name, step) for name in runs for step in (2, 4))
    for checkpoint in found:
        manifest, folder = expected[checkpoint.artifact], f"payload/checkpoints/step-{checkpoint.step}/"
        files = {n.removeprefix(folder): f["sha256"] for n, f in manifest["files"].items() if n.startswith(folder)}
        assert len(files) == 2
        assert checkpoint.sha256 == sha256_text(canonical_json(files))
        assert sha256_text(canonical_json(checkpoint.frozen_spec))[:12] == checkpoint.artifact.removeprefix("train/")
        assert checkpoint.frozen_spec["params"]["seed"] == checkpoint.seed
        assert checkpoint.commit == COMMIT
        assert checkpoint.base_model == f"pretrain/{base.key}"
        parent = f"{checkpoint.artifact}@2" if checkpoint.step == 4 else f"pretrain/{base.key}@0"
        assert checkpoint.parent == parent
        assert checkpoint.dataset == datasets["id-4"]
        assert len(checkpoint.dataset_sha256) == 64


def test_the_page_of_methods_has_a_column_for_every_score(tracked: None) -> None:
    client = client_of_copy()
    experiment = client.get_experiment_by_name("selfdistill training")
    note = experiment.tags["mlflow.note.content"]
    key = re.search(rf"#/experiments/{experiment.experiment_id}/runs\?viewStateShareKey=(\w+)", note)[1]
    columns = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["selectedColumns"]
    assert {"tags.`method`", "params.`seed`", "metrics.`exam/avg_at_k`"} <= set(columns)


def test_the_evaluation_experiment_shows_scores(tracked: None) -> None:
    experiment = client_of_copy().get_experiment_by_name("selfdistill evaluation")
    assert "viewStateShareKey=methods" in experiment.tags["mlflow.note.content"]
    columns = json.loads(experiment.tags["mlflow.sharedViewState.methods"])["selectedColumns"]
    assert {"tags.`method`", "tags.`benchmark`", "metrics.`avg_at_k`", "metrics.`mean_length`"} <= set(columns)


def run_of(artifact: Artifact) -> Any:
    client = client_of_copy()
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.artifact = '{artifact.id}'")
    return client, run.info.run_id


def test_an_evaluation_has_a_table_of_completions_to_read(tracked: None) -> None:
    evaluation = next(a for a in of_stage("evaluate") if a.frozen_spec["params"]["steps"] == [2, 4])
    client, run_id = run_of(evaluation)
    shown = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert shown == [{"path": "samples.json", "type": "table"}]
    written = json.loads(Path(client.download_artifacts(run_id, "samples.json", ".")).read_text())
    table = dict(zip(written["columns"], zip(*written["data"], strict=True), strict=True))
    assert list(table["step"]) == [2, 2, 4, 4]
    assert list(table["question"]) == ["What is 0?", "What is 1?"] * 2
    assert list(table["completion"])[2] == "0 0 at 4 "
    assert list(table["completion"])[3].endswith(" ... [5009 characters]")


def test_a_damaged_table_of_completions_is_named_and_the_rest_is_written(project: None) -> None:
    evaluation = of_stage("evaluate")[0]
    (evaluation.payload / "rollouts.parquet").write_text("damaged")
    report = quietly()
    assert report.created == report.runs == len(all_artifacts()) + 1
    assert len(report.problems) == 1 and evaluation.id in report.problems[0]


def test_tables_hang_on_the_training_runs_that_they_show(tracked: None) -> None:
    def tables(artifact: Artifact) -> dict[str, str]:
        client, run_id = run_of(artifact)
        found = client.list_artifacts(run_id, "tables/ood")
        return {item.path: Path(client.download_artifacts(run_id, item.path, ".")).read_text() for item in found}

    trained, other = sdpo(), next(a for a in of_stage("train") if a.id != sdpo().id)
    (base,) = of_stage("pretrain")
    rows = f"seed,train_artifact\nbase,{base.name}\nall,{trained.name}\n"
    write_atomically(Path("results/ood/tiny_sdpo.csv"), rows)
    plan(changed_config())
    quietly()
    assert tables(trained) == {"tables/ood/tiny_sdpo.csv": rows}
    assert not tables(other) and not tables(base)
    Path("results/ood/tiny_sdpo.csv").unlink()
    quietly()
    assert not tables(trained)


def test_a_server_that_is_down_is_one_line_and_only_a_warning_in_hooks(
    project: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"server http://127.0.0.1:9 does not answer"):
        quietly()
    Path("config").mkdir(exist_ok=True)
    Path("config/config.yaml").touch()
    command = [sys.executable, "-m", "selfdistill.cli", "track"]
    strict = subprocess.run(command, capture_output=True, text=True)
    assert (strict.returncode, strict.stderr.count("\n")) == (2, 1)
    hook = subprocess.run([*command, "--quiet", "--best-effort"], capture_output=True, text=True)
    assert (hook.returncode, hook.stdout, hook.stderr.count("\n")) == (0, "", 1)
    assert hook.stderr.startswith("warning: MLflow was not updated: the MLflow server")


def test_a_file_store_is_refused_with_the_way_out(project: None) -> None:
    with pytest.raises(TrackingError, match="Use sqlite:///"):
        quietly(store="file:./mlruns")


def test_a_broken_database_is_one_error_that_says_how_to_rebuild(tracked: None) -> None:
    Path("results/mlflow/mlflow.db").write_text("no database")
    way_out = "mv results/mlflow/mlflow.db results/mlflow/mlflow.db.broken; selfdistill track"
    with pytest.raises(TrackingError, match=re.escape(way_out)):
        quietly(everything=True)
    shutil.move("results/mlflow/mlflow.db", "results/mlflow/mlflow.db.broken")
    assert quietly().created


def test_no_message_advises_to_delete_a_file_that_is_no_store_of_ours(
    tracked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrackingStore, "prepare", PREPARE)
    Path("precious.txt").write_text("no database")
    with pytest.raises(TrackingError, match="Check MLFLOW_TRACKING_URI") as raised:
        quietly(store="sqlite:///precious.txt")
    assert not re.search(r"\b(rm|mv)\b", str(raised.value))
    assert Path("precious.txt").read_text() == "no database"


def hold(database: str, seconds: float) -> subprocess.Popen[bytes]:
    """Another program that locks a database, from the time when this returns."""
    code = (
        f"import sqlite3, time; c = sqlite3.connect({database!r}); c.execute('BEGIN EXCLUSIVE'); "
        f"print(flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_locked_database_is_waited_for_longer_than_sqlite_does_by_itself(tracked: None) -> None:
    of_stage("epistemics")[0].unseal()
    with hold("results/mlflow/mlflow.db", 7) as other:
        assert quietly().removed == 1
        assert other.wait() == 0


def test_a_database_that_stays_locked_is_one_line_that_advises_to_run_later(
    tracked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdistill.tracking.store.LOCK_SECONDS", 0.2)
    with hold("results/mlflow/mlflow.db", 60) as other:
        with pytest.raises(TrackingError, match="Another program has held the database") as raised:
            quietly(everything=True)
        other.kill()
    assert not re.search(r"\b(rm|mv)\b", str(raised.value))


def test_a_second_sqlite_store_leaves_the_files_of_the_default_one_alone(tracked: None) -> None:
    def files(store: str) -> set[str]:
        from mlflow import MlflowClient

        client = MlflowClient(store)
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        return {run.info.artifact_uri for run in runs if client.list_artifacts(run.info.run_id)}

    quietly()
    default, other = (f"sqlite:///{Path(name).resolve()}" for name in ("results/mlflow/mlflow.db", "other.db"))
    before = files(default)
    assert len(before) == len(all_artifacts()) + 1
    quietly(store="sqlite:///other.db")
    assert files(default) == before
    assert len(files(other)) == len(before) and not files(other) & before
    shutil.rmtree("results/mlflow")
    quietly()
    assert len(files(other)) == len(before)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hunter22@127.0.0.1:9",
        "http://me:hunter22/x@127.0.0.1:9",
        "postgresql://me:hunter22@127.0.0.1:9/mlflow",
        "postgresql+nodriver://me:hunter22@127.0.0.1:9/mlflow",
        "unheard://me:hunter22@127.0.0.1/mlflow",
        "file://me:hunter22@here/mlruns",
        "http://me:it's-hunter22@127.0.0.1:9",
        "http://me:it is hunter22@127.0.0.1:9",
        "http://me:12/hunter22@127.0.0.1:9",
        "postgresql://me:12#hunter22@127.0.0.1:9/mlflow",
        "postgresql://127.0.0.1:9/db?user=me&password=hunter22",
        "postgresql+nodriver://127.0.0.1:9/db?user=me&password=hunter22",
        "http://127.0.0.1:9/?password=hunter22",
        "me:hunter22@host:5000",
        "http:/me:hunter22@127.0.0.1:9",
    ],
)
def test_no_message_holds_the_password_of_the_store(project: None, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    message = what_is_said(uri, monkeypatch)
    if uri.startswith("postgresql://me:hunter22@"):
        assert "the MLflow database postgresql://127.0.0.1:9/mlflow does not answer" in message


def what_is_said(uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message of the error, in one line and without the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said: list[str] = []
    with pytest.raises(TrackingError) as raised:
        track(say=said.append)
    assert "hunter22" not in "".join([str(raised.value), *said])
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_server_that_is_no_database_is_one_line_without_the_password(
    project: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and ends them, so what fails is the library, with its own message."""
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 2)  # Its own ten take 100 seconds.

    def hang_up() -> None:
        with contextlib.suppress(OSError):
            while True:
                server.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, daemon=True).start()
        message = what_is_said(f"postgresql://me:hunter22@127.0.0.1:{server.getsockname()[1]}/mlflow", monkeypatch)
    assert "does not answer" not in message


@pytest.mark.parametrize(
    "uri",
    [
        "mssql+pyodbc://me:x@mydsn",
        "mysql://me:x@127.0.0.1:9/mlflow?unix_socket=/run/mysql.sock",
        "postgresql://me:x@127.0.0.1:9/mlflow?host=/run/postgresql",
    ],
)
def test_a_database_that_is_reached_another_way_is_not_asked_by_port(project: None, uri: str) -> None:
    TrackingStore(Path("results"), uri).check_reachable()


def test_a_query_is_left_out_to_its_end_whatever_it_holds() -> None:
    """Brackets may be part of a password, so text that follows an address without a blank goes with it."""
    assert without_password("at http://host/db?password=hun(ter)22>x refused") == "at http://host/db refused"


def test_a_server_that_drips_is_given_up(project: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then never exceeds a limit on the time of one read."""
    monkeypatch.setattr("selfdistill.tracking.store._CONNECT_SECONDS", 0.5)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for byte in head + b"x" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: drip(server.accept()[0]), daemon=True).start()
        started = time.monotonic()
        with pytest.raises(TrackingError, match="does not answer .no complete answer within 1 s"):
            quietly(store=f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < 20


def test_a_server_that_drips_after_it_said_that_it_is_well_is_given_up(
    project: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdistill.tracking.sync._RUN_SECONDS", 1)

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2" if self.path == "/health" else "1000")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(2 if self.path == "/health" else 1000):
                    self.wfile.write(b"x")
                    time.sleep(0 if self.path == "/health" else 0.1)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(TrackingError, match="no complete answer within 1 s"):
            quietly(store=f"http://127.0.0.1:{server.server_port}")
        assert time.monotonic() - started < 20
        server.shutdown()


def test_completions_without_a_column_are_a_problem_of_one_run(project: None) -> None:
    """They ended the update of all runs with a traceback."""
    import pyarrow.parquet as pq

    table = next(a for a in all_artifacts() if a.stage == "evaluate").payload / "rollouts.parquet"
    pq.write_table(pq.read_table(table).drop(["sample"]), table)
    said: list[str] = []
    track(say=said.append)
    assert any("it has no column sample" in line for line in said)
    assert any("holds" in line for line in said)


def test_a_checkpoint_deleted_in_the_ui_comes_back(tracked: None) -> None:
    from mlflow import MlflowClient

    quietly()
    before = content()
    client = MlflowClient(TrackingStore.choose().uri)
    trained = f"train/{of_stage('train')[0].key}"
    (model,) = client.search_logged_models(
        [client.get_experiment_by_name("selfdistill training").experiment_id], f"tags.id = '{trained}@4'"
    )
    client.delete_logged_model(model.model_id)
    quietly(everything=True)
    assert content() == before


def test_a_tampered_artifact_is_left_out_and_named(tracked: None) -> None:
    artifact = of_stage("epistemics")[0]
    spec = json.loads((artifact.folder / "spec.json").read_text())
    spec["params"]["words"] = ["other"]
    (artifact.folder / "spec.json").write_text(pretty_json(spec))
    report = quietly()
    assert len(report.problems) == 1
    assert "was changed after planning" in report.problems[0]
    assert f"epistemics/{artifact.key}" not in content()


def test_a_parameter_too_long_for_mlflow_is_cut_visibly() -> None:
    flat = flatten({"a": {"text": "x" * 7000, "list": [1, "b"], "none": None}, "on": True})
    assert flat["a.list"] == '[1, "b"]'
    assert (flat["a.none"], flat["on"]) == ("null", "true")
    assert len(flat["a.text"]) == MOST_PARAM
    assert f"sha256 {sha256_text('x' * 7000)}, whole in spec.json]" in flat["a.text"]


def test_names_that_mlflow_refuses_stay_distinct() -> None:
    assert legal("word:wait") == "word:wait"
    assert legal("a@b") != legal("a#b")
    assert len(legal("n" * 300)) <= 250


def test_long_runs_are_thinned_by_a_rule_that_does_not_depend_on_how_far_they_are(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 2501)]
    path.write_text("".join(rows[:700]))
    part = MetricsLog.read(path, started_ms=0, steps=2500)
    path.write_text("".join(rows))
    whole = MetricsLog.read(path, started_ms=0, steps=2500)
    assert whole.continues(part.size, part.sha256)
    first, rest = list(part.points()), list(whole.points(after=part.size))
    assert first + rest == list(whole.points())
    assert [point.step for point in first[:3]] == [1, 3, 6]
    assert len(first + rest) == 834


def test_an_artifact_of_several_experiments_has_the_shortest_name() -> None:
    assert Label(("toy_sdpo_d8", "toy_sdpo"), seed=2).run_name("train") == "toy_sdpo seed 2"


def test_the_root_of_the_store_is_the_default_one() -> None:
    assert os.fspath(ROOT) == "results/artifacts"


def test_a_moved_project_keeps_its_store(tracked: None) -> None:
    before = content()
    report = quietly()
    assert (report.created, report.updated, report.replaced) == (0, 0, 0)
    assert content() == before
    client = client_of_copy()
    run = client.search_runs([e.experiment_id for e in client.search_experiments()])[0]
    assert run.info.artifact_uri.startswith(Path.cwd().as_uri())


def test_tables_are_replaced_added_and_removed(tracked: None) -> None:
    quietly()
    Path("results/ood/tiny_grpo.csv").unlink()
    write_atomically(Path("results/ood/tiny_sdpo.csv"), "new\n")
    write_atomically(Path("results/report.html"), "<p>other</p>")
    assert quietly().updated == 1
    client = client_of_copy()
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.artifact = 'views/results'")
    assert [item.path for item in client.list_artifacts(run.info.run_id, "ood")] == ["ood/tiny_sdpo.csv"]
    text = Path(client.download_artifacts(run.info.run_id, "report.html", ".")).read_text()
    assert text == "<p>other</p>"


@pytest.mark.parametrize("moment", ["between looking and reading", "between reading and writing"])
def test_a_table_that_is_removed_meanwhile_is_no_crash(
    tracked: None, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As by `discard` beside a workflow, which updates MLflow at its end."""
    table = Path("results/ood/tiny_sdpo.csv")
    write_atomically(table, f"seed,train_artifact\nall,{sdpo().name}\n")
    where = Survey if moment == "between looking and reading" else builder
    name = "of" if where is Survey else "build_records"
    real = getattr(where, name)

    def removing(*arguments: Any) -> Any:
        found = real(*arguments)
        table.unlink(missing_ok=True)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(where, name, removing)
        problems = quietly().problems
    assert problems == ([] if where is Survey else [f"{table} was removed while MLflow was updated."] * 2)
    quietly()
    after = content()
    shutil.rmtree("results/mlflow")
    quietly()
    assert content() == after


def test_a_checkpoint_is_registered_once_by_reference_and_its_alias_moves(tracked: None) -> None:
    from typer.testing import CliRunner

    from selfdistill.cli import app

    write_atomically(Path("config/config.yaml"), "")

    def register(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["register", *arguments])
        assert result.exit_code == 0, result.exception or result.output
        return result.output

    training = sdpo()
    assert "step 4, is registered as best-model version 1 and as best-model@best." in register(
        training.key, "best-model", "--alias", "best"
    )
    assert "version 1" in register(str(training.folder), "best-model")
    assert "step 2, is registered as best-model version 2" in register(
        training.id, "best-model", "--step", "2", "--alias", "best"
    )
    client = client_of_copy()
    version = client.get_model_version_by_alias("best-model", "best")
    assert (version.version, version.tags["artifact"], version.tags["step"]) == (2, training.id, "2")
    assert version.tags["location"] == f"{training.folder}/payload/checkpoints/step-2"
    assert len(client.search_model_versions("name = 'best-model'")) == 2
    found = client.download_artifacts(version.run_id, "spec.json", ".")
    assert json.loads(Path(found).read_text()) == training.frozen_spec
    assert quietly(everything=True).replaced == 0


def test_what_has_no_checkpoint_cannot_be_registered(tracked: None) -> None:
    from selfdistill.schema.errors import UserError
    from selfdistill.tracking.registry import register_checkpoint

    with pytest.raises(UserError, match="has no checkpoint at step 3. Steps: 2, 4"):
        register_checkpoint(sdpo(), "x", step=3)
    with pytest.raises(UserError, match="has no checkpoint in MLflow"):
        register_checkpoint(of_stage("dataset")[0], "x")


def test_another_version_of_mlflow_counts_as_a_change(tracked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    quietly()
    assert quietly().is_unchanged
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == "mlflow" else version(name))
    assert not quietly().is_unchanged
