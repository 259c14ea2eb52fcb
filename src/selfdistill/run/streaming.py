"""Show a training in MLflow while it runs: a process beside the job streams its metrics.

The job starts that process, and tells it when it ends. It never waits for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from selfdistill.artifacts.store import Artifact
from selfdistill.parent import say_end
from selfdistill.run.job import Tee
from selfdistill.schema.runtime import MlflowSettings

#: Stages that write metrics by step.
_STAGES = ("train",)


def is_live(stage: str, settings: MlflowSettings) -> bool:
    """True if the settings say so or the store is a server, unless SELFDISTILL_TRACKING=off."""
    has_server = os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://"))
    return stage in _STAGES and (settings.live or has_server) and os.environ.get("SELFDISTILL_TRACKING") != "off"


@contextmanager
def streaming(artifact: Artifact, settings: MlflowSettings, tee: Tee) -> Iterator[None]:
    """Stream the artifact's metrics to MLflow while the block runs, if `is_live`."""
    process = _start(artifact, settings, tee) if is_live(artifact.stage, settings) else None
    try:
        yield
    finally:
        if process is not None:
            say_end(process)


def _start(artifact: Artifact, settings: MlflowSettings, tee: Tee) -> subprocess.Popen[bytes] | None:
    """Its messages go to the artifact's log.txt, because a pipe of the job's would keep the job's reader waiting."""
    module = ["-m", "selfdistill.tracking.live", str(artifact.folder), "--seconds", str(settings.seconds)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        with (artifact.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *module], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        tee.print(f"MLflow is not updated during this job: {error}")
        return None
