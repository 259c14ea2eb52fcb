"""A program in its sandbox, from outside: one guest process, one answer for each input, killed at the limit.

The guest may be wholly in the hands of the program. So nothing is believed but that these bytes came out: answers are
bounded in length and time, and whether they are right is decided here.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from selfdistill.grading.sandbox.backends import Backend, Limits, start

Status = Literal["ok", "error", "timeout", "output"]

#: How much longer than the guest's own clock this side waits before it kills the guest.
_GRACE_SECONDS = 10.0
_STARTUP_SECONDS = 60.0
_CHUNK_BYTES = 1 << 16
#: JSON writes a byte in at most six characters.
_ESCAPED = 6


@dataclass(frozen=True)
class Run:
    """What became of one program on one input; `output` is what it wrote, or the value of its function as JSON."""

    status: Status
    output: str = ""
    error: str = ""


class Sandbox:
    """One guest; a context manager. Raises RuntimeError where it does not start."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._limits = limits
        self._process = start(backend, limits)
        self._folder = os.readlink(f"/proc/{self._process.pid}/cwd") if backend == "none" else None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._rest = b""
        if self._line(_STARTUP_SECONDS, _CHUNK_BYTES) != b"ready":
            message = self.close()
            raise RuntimeError(f"the sandbox ({backend}) did not start: {message or 'no message'}")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, code: str, function: str | None, text: str) -> Run:
        """Run a program on one input. A guest that does not answer in time, or not sensibly, is closed for good."""
        request = json.dumps({"code": code, "function": function, "input": text}).encode() + b"\n"
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return Run("error", error="the sandbox has ended")
        most = _ESCAPED * (self._limits.output_mb << 20) + _CHUNK_BYTES
        answer = self._line(self._limits.wall_seconds + _GRACE_SECONDS, most)
        if answer is None:
            self.close()
            return Run("timeout")
        try:
            return _read_answer(answer)
        except (ValueError, TypeError, RecursionError):
            self.close()
            return Run("error", error="the sandbox has ended")

    def close(self) -> str:
        """Kill everything inside: the guest is process 1 of its namespace, and its end is the end of all others.

        Returns what it left on standard error.
        """
        if self._process.stdout.closed:
            return ""
        for pid in [*_children(self._process.pid), self._process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        message = self._process.stderr.read(_CHUNK_BYTES).decode(errors="replace").strip()[-500:]
        self._selector.close()
        for stream in (self._process.stdout, self._process.stderr):
            stream.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            self._rest = b""  # A request that nobody read.
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        return message

    def _line(self, seconds: float, most: int) -> bytes | None:
        """The next line; empty at the end of the stream; None after `seconds`, or if it grows beyond `most` bytes."""
        deadline = time.monotonic() + seconds
        line = bytearray(self._rest)
        while b"\n" not in line[-_CHUNK_BYTES:]:
            if len(line) > most or not self._selector.select(max(0.0, deadline - time.monotonic())):
                return None
            chunk = os.read(self._process.stdout.fileno(), _CHUNK_BYTES)
            if not chunk:
                return b""
            line += chunk
        end = line.index(b"\n")
        self._rest = bytes(line[end + 1 :])
        return bytes(line[:end])


def _read_answer(answer: bytes) -> Run:
    """Raises ValueError, TypeError or RecursionError for anything but a run."""
    run = Run(**json.loads(answer))
    if run.status not in get_args(Status) or not isinstance(run.output, str) or not isinstance(run.error, str):
        raise TypeError("no run")
    for text in (run.output, run.error):
        text.encode()  # Half a surrogate pair could not be stored.
    return run


def _children(pid: int) -> list[int]:
    """Process 1 of a sandbox is the child of the process that made it."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
