"""A store that an older MLflow made is upgraded by the next `track`, also if no result has changed since."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tracking_project import content, fill, of_stage, plan, quietly

OLD = "3.10.1"
#: MLflow of that time only upgrades a database that has tables.
TRACK = """
from mlflow import MlflowClient
MlflowClient("sqlite:///results/mlflow/mlflow.db").search_experiments()
from selfdistill.tracking import track
track()
"""


def schema() -> str:
    """The revision of the tables, as MLflow's migrations count them."""
    with closing(sqlite3.connect("results/mlflow/mlflow.db")) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


@pytest.mark.attack
def test_a_store_of_an_older_mlflow_becomes_what_a_new_one_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [f"{name}=={OLD}" for name in ("mlflow", "mlflow-skinny", "mlflow-tracing")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "old"), *old]
    subprocess.run(pip, check=True)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    plan()
    for artifact in of_stage("epistemics"):
        fill(artifact)
    Path("results/mlflow").mkdir()
    paths = os.pathsep.join([str(tmp_path / "old"), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", TRACK], check=True, env=os.environ | {"PYTHONPATH": paths})
    before = schema()
    assert quietly().replaced == 0
    upgraded, after = content(), schema()
    assert after != before
    shutil.rmtree("results/mlflow")
    quietly()
    assert (content(), schema()) == (upgraded, after)
