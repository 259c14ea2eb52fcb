"""Ends a job that hangs, and reports the phase in which it hung.

A hang (a collective operation that waits for a dead process, an engine that never answers) would otherwise occupy its
GPUs until the time limit. The last saved state is kept, so the next attempt resumes from it.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

#: Exit code of a hang: a software error (EX_SOFTWARE); a retry may help.
EXIT_HANG = 70


class Watchdog:
    """Call `heartbeat(phase)` at the beginning of every phase; after `seconds` without a call the process exits.

    `report` gets one line; the stacks of all threads are appended to the file `stacks`.
    """

    def __init__(self, seconds: float, report: Callable[[str], None], stacks: Path) -> None:
        self._seconds, self._report, self._stacks = seconds, report, stacks
        self._phase, self._seen = "start", time.monotonic()
        self._done = threading.Event()

    def heartbeat(self, phase: str) -> None:
        self._phase, self._seen = phase, time.monotonic()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(self._seconds / 4, 10.0)):
            silent = time.monotonic() - self._seen
            if silent > self._seconds:
                self._report(f"error: no heartbeat for {silent:.0f} s in phase `{self._phase}`; ending the job.")
                with self._stacks.open("a") as file:
                    faulthandler.dump_traceback(file)
                os._exit(EXIT_HANG)
