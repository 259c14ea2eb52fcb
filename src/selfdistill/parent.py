"""The end of a parent process, as its child learns of it, however the parent ends.

`die_with`: the kernel kills the child at once. `wait_for_parent`: the child reads the pipe that is its standard input,
and has time to clean up. The parent says with `say_end` that it ended regularly; a parent that was killed says nothing.

Beside files.py, below all wings: run/ and tracking/, which do not import each other, both need it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Loaded here, because a child between fork and exec must not import anything.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_END = b"."


def die_with(ancestor: int) -> None:
    """Kill this process when its parent ends, or now if the process `ancestor` is no ancestor any more.

    The parent is the thread that started this process: one that lives as long as the work. Linux only (prctl(2)).
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A parent that ended before the call above sends nothing.
    if Path("/proc/self/stat").exists() and ancestor not in ancestors():
        os._exit(128 + signal.SIGKILL)


def ancestors() -> Iterator[int]:
    """Process ids of the parent, its parent, and so on, as far as this process may see them."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        pid = _parent_of(pid)


def _parent_of(pid: int) -> int:
    try:
        # The name of a program, in parentheses, may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def say_end(child: subprocess.Popen[bytes]) -> None:
    """Tell a child, whose standard input is a pipe, that the work has ended regularly."""
    with suppress(BrokenPipeError):
        child.stdin.write(_END)
        child.stdin.close()


def wait_for_parent() -> bool:
    """Wait until the parent says its end (True) or is gone without it (False). For the child of `say_end`."""
    return os.read(sys.stdin.fileno(), 1) == _END
