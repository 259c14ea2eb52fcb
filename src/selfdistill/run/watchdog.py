"""Ends a job that hangs, and reports the phase in which it hung.

A hang (a collective operation that waits for a dead process, an engine that never answers) would otherwise occupy its
GPUs until the time limit. The last saved state is kept, so the next attempt resumes from it.

Each process of a job has a watchdog. A process that waits for a slower one gives no heartbeat of its own, so all of
them share one file: its time of change is the last heartbeat of any process. A hang ends all heartbeats, because the
others wait for the process that hangs.
"""

from __future__ import annotations

import faulthandler
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

#: Exit code of a hang: a software error (EX_SOFTWARE); a retry may help.
EXIT_HANG = 70
#: File in an artifact's folder to which the stacks of a hanging job are appended.
STACKS = "hang.txt"


class Watchdog:
    """Call `heartbeat(phase)` at the beginning of every phase; after `seconds` without a call the process exits.

    `report` gets one line; the stacks of all threads are appended to the file `stacks`. `shared`: a file that the
    watchdogs of all processes of the job are given; a heartbeat of one counts for all.
    """

    def __init__(self, seconds: float, report: Callable[[str], None], stacks: Path, shared: Path | None = None) -> None:
        self._seconds, self._report, self._stacks, self._shared = seconds, report, stacks, shared
        self._poll = min(seconds / 4, 10.0)
        self._phase, self._seen = "start", time.monotonic()
        self._touched, self._others = -math.inf, 0
        self._done = threading.Event()

    def heartbeat(self, phase: str) -> None:
        self._phase, self._seen = phase, time.monotonic()
        if self._shared is not None and self._seen - self._touched > self._poll:
            self._touched = self._seen
            self._shared.touch()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(self._poll):
            self._check_others()
            silent = time.monotonic() - self._seen
            if silent > self._seconds:
                self._report(f"error: no heartbeat for {silent:.0f} s in phase `{self._phase}`; ending the job.")
                with self._stacks.open("a") as file:
                    faulthandler.dump_traceback(file)
                os._exit(EXIT_HANG)

    def _check_others(self) -> None:
        """Compare the file's time with its last one, not with the clock, which differs between machines."""
        changed = self._shared.stat().st_mtime_ns if self._shared is not None and self._shared.exists() else 0
        if changed != self._others:
            self._others, self._seen = changed, time.monotonic()
