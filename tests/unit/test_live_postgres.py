"""Ten trainings stream to one MLflow server on PostgreSQL; server and database stop for a while under load.

Needs root and Debian's package `postgresql` (skipped without); `make test-attack` runs it.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfdistill.artifacts.store import Artifact, find
from test_live_tracking import _answers, points, side_processes, wait_until
from tracking_project import CONFIG, fill, of_stage, plan, quietly

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("missing"))
TRAININGS, STEPS, STEP_SECONDS = 10, 120, 1.0

pytestmark = [
    pytest.mark.attack,
    pytest.mark.skipif(os.geteuid() != 0 or not (PROGRAMS / "initdb").is_file(), reason="needs root and postgresql"),
]


def as_postgres(*command: object) -> None:
    done = subprocess.run(
        ["runuser", "-u", "postgres", "--", *map(str, command)], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Database:
    """A PostgreSQL of its own, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder / "data", free_port()
        as_postgres(PROGRAMS / "initdb", "-D", self.folder, "-U", "postgres", "-A", "trust")

    @property
    def uri(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @contextmanager
    def running(self) -> Iterator[None]:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        control = (PROGRAMS / "pg_ctl", "-D", self.folder, "-w", "-l", self.folder / "log")
        as_postgres(*control, "-o", options, "start")
        try:
            yield
        finally:
            as_postgres(*control, "-m", "immediate", "stop")


@pytest.fixture
def database_folder() -> Iterator[Path]:
    """PostgreSQL refuses root, and its user may not enter root's temporary folders."""
    folder = Path(tempfile.mkdtemp(prefix="selfdistill-postgres-"))
    shutil.chown(folder, "postgres")
    yield folder
    shutil.rmtree(folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def server(database: Database, port: int, folder: Path) -> Iterator[str]:
    """MLflow's server on the database, with its artifact store behind it."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2",
        "--backend-store-uri", database.uri, "--artifacts-destination", str(folder / "files"),
    ]  # fmt: skip
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: _answers(port), 240)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(artifact: Artifact, **environment: str) -> subprocess.Popen[str]:
    """The launcher with a stage that takes a step every second, and prints how long each took."""
    code = f"""
import json, sys, time, types
from selfdistill.run import launch

def main(job):
    seconds = []
    with job.artifact.metrics.open("a") as stream:
        for step in range(1, {STEPS} + 1):
            started = time.perf_counter()
            time.sleep({STEP_SECONDS})
            stream.write(json.dumps({{"step": step, "reward_mean": 0.5, "loss": 1 / step}}) + "\\n")
            stream.flush()
            seconds.append(time.perf_counter() - started)
    folder = job.artifact.payload / "checkpoints/step-{STEPS}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    (job.artifact.payload / "rollouts").mkdir()
    for step in range(1, {STEPS} + 1):
        (job.artifact.payload / f"rollouts/step-{{step:06d}}.parquet").touch()
    print("steps:", json.dumps(seconds))
    return {{}}

stage = types.ModuleType("selfdistill.stages.train")
stage.main, stage.RESUMES = main, True
sys.modules["selfdistill.stages.train"] = stage
sys.exit(launch.run(["train", {str(artifact.manifest_path)!r}, "--log", "logs/{artifact.key}.log",
                     "--runtime", "runtime.yaml"]))
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | environment)  # fmt: skip


def median_step(jobs: list[subprocess.Popen[str]]) -> float:
    """Median over all steps of all jobs, which must have succeeded; seconds."""
    seconds: list[float] = []
    for job in jobs:
        output, _ = job.communicate(timeout=900)
        assert job.returncode == 0, output
        seconds += [float(value) for value in output.split("steps: [")[1].split("]")[0].split(",")]
    assert len(seconds) == TRAININGS * STEPS
    return statistics.median(seconds)


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Artifact]:
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(CONFIG)
    config["recipes"]["grpo"] |= {"steps": STEPS, "checkpoint_every": STEPS}
    config["experiments"] = {"tiny_grpo": config["experiments"]["tiny_grpo"] | {"seeds": list(range(TRAININGS))}}
    plan(config)
    found = of_stage("train")
    for artifact in found:
        for upstream in artifact.input_ids.values():
            if not Artifact(find(upstream)).is_sealed:
                fill(Artifact(find(upstream)))
    Path("runtime.yaml").write_text("mlflow: {seconds: 2}\ndefaults: {settings: {threads: 1}}\n")
    return found


def test_ten_trainings_stream_to_postgresql_which_stops_for_a_while(
    trainings: list[Artifact], database_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(trainings) == TRAININGS
    undisturbed = median_step([start(artifact, SELFDISTILL_TRACKING="off") for artifact in trainings])
    for artifact in trainings:
        artifact.unseal()
    database, port = Database(database_folder), free_port()
    with database.running(), server(database, port, tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        quietly(everything=True)  # makes experiments and what the trainings are made from
        jobs = [start(artifact, MLFLOW_TRACKING_URI=uri) for artifact in trainings]
        wait_until(lambda: len([n for n in points(uri).values() if n > 3]) >= 3, 240)
    time.sleep(30)  # server and database are gone, under load
    with database.running(), server(database, port, tmp_path) as uri:
        streamed = median_step(jobs)
        wait_until(lambda: not any(side_processes(artifact.folder) for artifact in trainings), 300)
        quietly(everything=True)
        assert points(uri) == {f"tiny_grpo seed {seed}": STEPS for seed in range(TRAININGS)}
    print(f"median step: {undisturbed:.5f} s alone, {streamed:.5f} s while streaming")
    assert streamed <= 1.01 * undisturbed
