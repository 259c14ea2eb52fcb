"""Stream one artifact to MLflow while it is computed: `python -m selfdistill.tracking.live FOLDER --seconds 10`.

A process beside the job, at a lower priority, that only reads the artifact's files. So a server that is slow, full
or down costs the job nothing, and the next `selfdistill track` writes what is missing. Its standard input is a pipe
from the job. It exits after the job, however that ends: within seconds if the job was killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from selfdistill.artifacts.lock import is_locked, lock_path
from selfdistill.artifacts.store import Artifact
from selfdistill.parent import wait_for_parent
from selfdistill.tracking.sync import stream

#: Time limit of one update, the last one included.
_UPDATE_SECONDS = 60
#: A job says its end shortly before it releases its lock.
_LOCK_SECONDS = 5.0
#: Time for the last update of a job that was killed.
_KILLED_SECONDS = 6.0


class _TimeIsUp(BaseException):
    """Not an Exception: the libraries below would take it for a request to send once more."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="selfdistill.tracking.live", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="time between two updates")
    options = parser.parse_args(arguments)
    os.nice(10)
    signal.signal(signal.SIGALRM, _time_is_up)
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
    signal.alarm(_UPDATE_SECONDS)
    try:
        stream(folder)
    except _TimeIsUp:
        return f"the update took more than {_UPDATE_SECONDS} s"
    except Exception as error:  # Whatever went wrong, the next update tries again.
        return str(error) or type(error).__name__
    finally:
        signal.alarm(0)
    return ""


def _wait_for_unlock(folder: Path) -> None:
    """Wait until the artifact is sealed or its lock is free, so that the last update shows its final state."""
    end = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < end and not Artifact(folder).is_sealed and is_locked(lock_path(folder)):
        time.sleep(0.05)


def _time_is_up(_signal: int, _frame: FrameType | None) -> None:
    raise _TimeIsUp


if __name__ == "__main__":
    main()
