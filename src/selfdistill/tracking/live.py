"""Stream one artifact to MLflow while it is computed: `python -m selfdistill.tracking.live FOLDER --seconds 10`.

A process beside the job, at a lower priority, that only reads the artifact's files. So a server that is slow, full
or down costs the job nothing, and the next `selfdistill track` writes what is missing. Its standard input is a pipe
from the job. It exits after the job, however that ends: within seconds if the job was killed.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from selfdistill.artifacts.lock import is_locked, lock_path
from selfdistill.artifacts.store import Artifact
from selfdistill.parent import wait_for_parent
from selfdistill.tracking.sync import stream
from selfdistill.tracking.time_limit import TimeIsUp, time_limit

#: Time limit of one update, the last one included.
_UPDATE_SECONDS = 60
#: A job says its end shortly before it releases its lock.
_LOCK_SECONDS = 5.0
#: Time for the last update of a job that was killed.
_KILLED_SECONDS = 6.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="selfdistill.tracking.live", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="time between two updates")
    options = parser.parse_args(arguments)
    os.nice(10)
    end = threading.Event()
    threading.Thread(target=_watch_parent, args=(end,), daemon=True).start()
    said, has_ended = "", False
    while not has_ended:
        has_ended = end.wait(options.seconds)
        if has_ended:
            _wait_for_unlock(options.folder)
        failure = _update(options.folder)
        if failure and failure != said:
            print(f"MLflow is not up to date: {failure}", file=sys.stderr, flush=True)
        said = failure


def _watch_parent(end: threading.Event) -> None:
    """Set `end` when the job ends. If it was killed, this process ends soon, whatever it waits for."""
    is_regular = wait_for_parent()
    end.set()
    if not is_regular:
        time.sleep(_KILLED_SECONDS)
        os._exit(1)


def _update(folder: Path) -> str:
    """One update; returns the reason if it failed."""
    try:
        with time_limit(_UPDATE_SECONDS):
            stream(folder)
    except TimeIsUp:
        return f"the update took more than {_UPDATE_SECONDS} s"
    except Exception as error:  # Whatever went wrong, the next update tries again.
        return str(error) or type(error).__name__
    return ""


def _wait_for_unlock(folder: Path) -> None:
    """Wait until the artifact is sealed or its lock is free, so that the last update shows its final state."""
    end = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < end and not Artifact(folder).is_sealed and is_locked(lock_path(folder)):
        time.sleep(0.05)


if __name__ == "__main__":
    main()
