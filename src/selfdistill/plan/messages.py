"""What Snakemake prints while it runs, in fewer lines and in words that say what to do next."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from snakemake_interface_logger_plugins.common import LogEvent

from selfdistill.plan.planner import Planner
from selfdistill.plan.time_left import TimeLeft
from selfdistill.plan.views import unknown_target

INTERRUPTED = (
    "interrupted: what is finished is kept, and a training continues from its last saved state. Run the same command "
    "again. (`selfdistill track` shows the runs in MLflow before that.)"
)
_ABOUT_SCHEDULING = re.compile(r"Select jobs to execute|Execute \d+ jobs")


class PlainMessages(logging.Filter):
    """One line for each finished job, with its number, its duration and the time that is left.

    An unknown target stops with a list of the known ones, Ctrl-C with how to continue. In a dry run, known only
    once the workflow has been read, jobs are listed as Snakemake lists them.
    """

    def __init__(
        self,
        planner: Callable[[], Planner],
        *,
        is_dry_run: Callable[[], bool],
        now: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self.is_interrupted = False
        self._planner, self._is_dry_run, self._now = planner, is_dry_run, now
        self._started: dict[int, tuple[str, str, float]] = {}
        self._finished: list[tuple[str, float]] = []
        self._time_left = TimeLeft()
        self._begin = now()

    def filter(self, record: logging.LogRecord) -> bool:
        message, exception = record.getMessage(), getattr(record, "exception", None)
        if message.startswith("Terminating processes on user request"):
            self.is_interrupted = True
        elif exception == "MissingRuleException":
            if found := re.search(r"No rule to produce (\S+)", message):
                _replace(record, f"error: {unknown_target(self._planner(), found[1])}")
        elif self.is_interrupted and exception == "WorkflowError":
            _replace(record, INTERRUPTED)
        elif self.is_interrupted and record.levelno >= logging.ERROR:
            return False  # jobs that failed because they were interrupted
        elif not self._is_dry_run():
            return self._is_shown(record, message)
        return True

    def _is_shown(self, record: logging.LogRecord, message: str) -> bool:
        """False for what the line of a finished job says as well; PROGRESS becomes that line."""
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self._time_left.expect({rule: count for rule, count in record.stats.items() if rule != "total"})
        elif event == LogEvent.JOB_INFO:
            self._started[record.jobid] = (record.rule_name, record.rule_msg or record.rule_name, self._now())
        elif event == LogEvent.JOB_FINISHED:
            rule, what, since = self._started.pop(record.job_id, ("", "a job", self._now()))
            self._finished.append((what, self._now() - since))
            self._time_left.finish(rule, self._now() - since)
        elif event == LogEvent.PROGRESS:
            _replace(record, self._progress(record.done, record.total))
            return True
        return event not in (LogEvent.JOB_INFO, LogEvent.JOB_FINISHED) and not _ABOUT_SCHEDULING.match(message)

    def _progress(self, done: int, total: int) -> str:
        """`12/129  Train toy-grpo-seed0 [..] (18 s), about 3 min left`, a line per job since the last progress."""
        seconds, is_least = self._time_left.seconds(self._now() - self._begin)
        left = f", {'over' if is_least else 'about'} {_duration(seconds)} left" if done < total else ""
        count = f"{done:>{len(str(total))}}/{total}"
        lines = [f"{count}  {what} ({_duration(took)}){left}" for what, took in self._finished]
        self._finished.clear()
        return "\n".join(lines) or count


def _replace(record: logging.LogRecord, message: str) -> None:
    record.msg, record.args = message, ()
    record.__dict__.pop("event", None)  # the event decides how a record is printed


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
