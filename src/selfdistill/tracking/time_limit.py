"""A limit on the time that a server takes, whatever it sends: a byte now and then never exceeds a limit of one read."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class TimeIsUp(BaseException):
    """Not an Exception: MLflow would take it for a request to send once more."""


@contextmanager
def time_limit(seconds: int) -> Iterator[Callable[[], None]]:
    """Raise TimeIsUp in the body after `seconds` (0: never); what is yielded starts the time anew.

    An alarm of the process, so only its main thread has a limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.signal(signal.SIGALRM, _raise)

    def renew() -> None:
        signal.alarm(seconds)

    renew()
    try:
        yield renew
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _raise(_signal: int, _frame: FrameType | None) -> None:
    raise TimeIsUp
