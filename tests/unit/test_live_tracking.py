"""Trainings that are shown in MLflow while they run: a server can be late, down or hang, and no job notices."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from selfdistill.artifacts.store import Artifact, find
from selfdistill.parent import say_end
from selfdistill.tracking import live
from selfdistill.tracking.sync import stream
from tracking_project import (
    CONFIG,
    content,
    fill,
    of_stage,
    plan,
    quietly,
    write_metrics,
    write_provenance,
)  # fmt: skip


@pytest.fixture
def training(empty: None) -> Artifact:
    """A training that has just started; what it is made from is finished, and MLflow knows nothing."""
    return begun(of_stage("train")[0])


def begun(artifact: Artifact) -> Artifact:
    for upstream in artifact.input_ids.values():
        if not Artifact(find(upstream)).is_sealed:
            fill(Artifact(find(upstream)))
    write_provenance(artifact, sealed=False)
    return artifact


def trainings_of(steps: int) -> list[Artifact]:
    """Trainings of so many steps, with a checkpoint at the end, that have just started."""
    config = copy.deepcopy(CONFIG)
    for recipe in config["recipes"].values():
        recipe |= {"steps": steps, "checkpoint_every": steps}
    plan(config)
    return [begun(a) for a in of_stage("train") if a.frozen_spec["params"]["steps"] == steps]


def run_of(artifact: Artifact) -> dict[str, Any]:
    return content().get(artifact.id, {})


def steps(artifact: Artifact) -> list[int]:
    return [step for step, _, _ in run_of(artifact).get("metrics", {}).get("reward_mean", [])]


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.3)


def test_a_stream_writes_the_run_that_a_later_track_continues(training: Artifact) -> None:
    with FileLock(training.folder / ".lock"):
        stream(training.folder)
        assert run_of(training)["info"][1] == "RUNNING"
        for last in (1, 3):
            write_metrics(training, range(1, last + 1))
            stream(training.folder)
            assert steps(training) == list(range(1, last + 1))
    stream(training.folder)
    assert run_of(training)["info"][1] == "KILLED"
    fill(training)
    stream(training.folder)
    streamed = run_of(training)
    assert (streamed["info"][1], [step for _, step in streamed["makes"]]) == ("FINISHED", [2, 4])
    report = quietly()
    assert (report.replaced, report.removed, report.points) == (0, 0, 0)
    before = content()
    shutil.rmtree("results/mlflow")
    quietly()
    assert content() == before


def test_a_training_that_resumed_from_an_earlier_state_is_streamed_without_double_steps(training: Artifact) -> None:
    write_metrics(training, range(1, 4))
    stream(training.folder)
    write_metrics(training, range(1, 3), offset=0.5)
    stream(training.folder)
    assert [value for _, _, value in run_of(training)["metrics"]["reward_mean"]] == [0.6, 0.7]


def test_a_stream_leaves_the_numbers_of_other_runs_alone(training: Artifact) -> None:
    other = next(a for a in of_stage("train") if a.id != training.id)
    for artifact in (*of_stage("evaluate"), *of_stage("epistemics")):
        if training.id not in artifact.input_ids.values() and other.id in artifact.input_ids.values():
            fill(artifact)
    quietly()
    before = content()
    assert "exam/avg_at_k" in before[other.id]["metrics"]
    write_metrics(training, range(1, 3))
    stream(training.folder)
    now = content()
    assert now.pop(training.id) and now == before


def test_a_stream_does_not_wait_for_another_writer(training: Artifact) -> None:
    write_metrics(training, range(1, 3))
    Path("results/mlflow").mkdir()
    with FileLock("results/mlflow/.lock"):
        stream(training.folder)
    assert not Path("results/mlflow/mlflow.db").exists()


@contextmanager
def process_beside(artifact: Artifact) -> Iterator[subprocess.Popen[bytes]]:
    """The process that a job starts, updating five times a second."""
    command = [sys.executable, "-m", "selfdistill.tracking.live", str(artifact.folder), "--seconds", "0.2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_process_beside_a_job_streams_until_the_job_says_its_end(
    training: Artifact,
    database: Path,
) -> None:
    Path("results/mlflow").mkdir()
    shutil.copy(database, "results/mlflow/mlflow.db")
    Path("results/mlflow/.written-default.json").write_text(json.dumps({"mlflow": metadata.version("mlflow")}))
    write_metrics(training, range(1, 2))
    with process_beside(training) as process:
        wait_until(lambda: steps(training) == [1])
        write_metrics(training, range(1, 4))
        wait_until(lambda: steps(training) == [1, 2, 3])
        write_metrics(training, range(1, 5))
        say_end(process)
        assert process.wait(90) == 0
        assert process.stderr.read() == b""
    assert steps(training) == [1, 2, 3, 4]


def test_a_server_that_hangs_is_left_after_the_time_limit(training: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_UPDATE_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        write_metrics(training, range(1, 2))
        assert "took more than 1 s" in live._update(training.folder)
        assert time.monotonic() - started < 15
        with FileLock("results/mlflow/.lock", timeout=0):
            pass


def launch_training(artifact: Artifact, uri: str, *, die: bool = False) -> subprocess.Popen[str]:
    """The launcher with a stage that writes a line of metrics for each step, every 50 ms."""
    steps = artifact.frozen_spec["params"]["steps"]
    code = f"""
import json, os, signal, sys, time, types
from selfdistill.artifacts.store import Artifact
from selfdistill.run import launch

def main(job):
    started = time.monotonic()
    with job.artifact.metrics.open("a") as stream:
        for step in range(1, {steps} + 1):
            stream.write(json.dumps({{"step": step, "reward_mean": 0.5}}) + "\\n")
            stream.flush()
            time.sleep(0.05)
    if {die}:
        os.kill(os.getpid(), signal.SIGKILL)
    folder = job.artifact.payload / "checkpoints/step-{steps}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    (job.artifact.payload / "rollouts").mkdir()
    for step in range(1, {steps} + 1):
        (job.artifact.payload / f"rollouts/step-{{step:06d}}.parquet").touch()
    print("steps took", time.monotonic() - started)
    return {{}}

stage = types.ModuleType("selfdistill.stages.train")
stage.main, stage.RESUMES = main, True
sys.modules["selfdistill.stages.train"] = stage
sys.exit(launch.run(["train", {str(artifact.manifest_path)!r}, "--log", "logs/train.log", "--runtime", "runtime.yaml"]))
"""
    Path("runtime.yaml").write_text("mlflow: {seconds: 0.2}\ndefaults: {settings: {threads: 1}}\n")
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=environment)  # fmt: skip


def test_a_job_does_not_notice_a_server_that_is_down(empty: None) -> None:
    training = trainings_of(60)[0]
    process = launch_training(training, "http://me:hunter22@127.0.0.1:9")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert 3 <= float(output.split("steps took ")[1].split()[0]) < 6
    assert training.is_sealed
    said = (training.folder / "log.txt").read_text()
    assert said.count("MLflow is not up to date: the MLflow server http://127.0.0.1:9 does not answer") == 1
    assert "hunter22" not in said + output


def side_processes(folder: Path) -> list[int]:
    """Ids of processes that stream an artifact."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "selfdistill.tracking.live" in words and str(folder) in words:
            found.append(int(path.parent.name))
    return [pid for pid in found if os.readlink(f"/proc/{pid}/cwd") == os.getcwd()]


def test_the_process_beside_a_killed_job_ends_too(empty: None) -> None:
    """Also if it waits for a server that accepts a request and never answers."""
    training = trainings_of(100)[0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = launch_training(training, f"http://127.0.0.1:{server.getsockname()[1]}", die=True)
        wait_until(lambda: bool(side_processes(training.folder)))
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        wait_until(lambda: not side_processes(training.folder), 10)


@contextmanager
def mlflow_server(port: int, folder: Path, database: str = "server.db") -> Iterator[str]:
    """A real server; another one on the same folder continues with its data."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/{database}", "--artifacts-destination", f"{folder}/files",
    ]  # fmt: skip
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: _answers(port), 90)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    from urllib.request import urlopen

    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


def points(uri: str) -> dict[str, int]:
    """Points of `reward_mean` by run name."""
    code = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
runs = [run for run in runs if run.data.tags.get("stage") == "train"]
print(json.dumps({r.info.run_name: len(client.get_metric_history(r.info.run_id, "reward_mean")) for r in runs}))
"""
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_trainings_stream_to_a_server_that_is_stopped_in_between_and_nothing_is_lost(
    empty: None,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(database, folder / "server.db")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    both = trainings_of(600)
    with mlflow_server(port, folder) as uri:
        jobs = [launch_training(artifact, uri) for artifact in both]
        wait_until(lambda: len(points(uri)) == 2 and min(points(uri).values()) > 10, 300)
    time.sleep(3)
    with mlflow_server(port, folder) as uri:
        for job in jobs:
            output, _ = job.communicate(timeout=120)
            assert job.returncode == 0, output
            assert float(output.split("steps took ")[1].split()[0]) < 45  # 30 seconds of work
        wait_until(lambda: not any(side_processes(artifact.folder) for artifact in both), 90)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        quietly(everything=True)
        assert points(uri) == {"tiny_grpo seed 1": 600, "tiny_sdpo seed 0": 600}
