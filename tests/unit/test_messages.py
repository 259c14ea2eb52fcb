"""What is printed while a workflow runs."""

import logging

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from selfdistill.plan.messages import INTERRUPTED, PlainMessages


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def messages(clock) -> PlainMessages:
    return PlainMessages(lambda: None, is_dry_run=lambda: False, now=clock)


def record(text: str | None = None, level: int = logging.INFO, **fields) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, "", 0, text, (), None)
    made.__dict__.update(fields)
    return made


def shown(messages: PlainMessages, *records: logging.LogRecord) -> list[str]:
    return [r.getMessage() for r in records if messages.filter(r)]


def planned(**jobs: int) -> logging.LogRecord:
    return record("Job stats:", event=LogEvent.RUN_INFO, stats={**jobs, "total": sum(jobs.values())})


def started(job: int, what: str, rule: str = "train") -> logging.LogRecord:
    return record("Rule", event=LogEvent.JOB_INFO, jobid=job, rule_msg=what, rule_name=rule)


def finished(job: int) -> logging.LogRecord:
    return record("Finished jobid", event=LogEvent.JOB_FINISHED, job_id=job)


def progress(done: int, total: int) -> logging.LogRecord:
    return record(None, event=LogEvent.PROGRESS, done=done, total=total)


def test_a_job_is_one_line_with_its_number_its_duration_and_the_time_left(messages, clock):
    assert shown(messages, planned(train=12)) == ["Job stats:"]
    assert shown(messages, record("Select jobs to execute..."), started(3, "Train a"), started(4, "Train b")) == []
    clock.seconds = 20.0
    assert shown(messages, finished(3), progress(1, 12)) == [" 1/12  Train a (20 s), about 4 min left"]
    clock.seconds = 7200.0
    assert shown(messages, finished(4), progress(12, 12)) == ["12/12  Train b (2.0 h)"]


def test_the_time_left_knows_that_kinds_of_jobs_take_different_times(messages, clock):
    """Two trainings at a time; then the 30 evaluations of a second each that none has ended of at first."""
    shown(messages, planned(train=4, evaluate=30, table=1), started(1, "Train a"), started(2, "Train b"))
    clock.seconds = 60.0
    assert shown(messages, finished(1), finished(2), progress(2, 35)) == [
        " 2/35  Train a (60 s), over 60 s left\n 2/35  Train b (60 s), over 60 s left"
    ]
    shown(messages, started(3, "Train c"), started(4, "Evaluate d", "evaluate"))
    clock.seconds = 61.0
    # Two trainings of 60 seconds and 29 evaluations of 1, at about two at a time; the one table is left out.
    assert shown(messages, finished(4), progress(3, 35)) == [" 3/35  Evaluate d (1 s), about 75 s left"]


def test_a_dry_run_is_listed_as_snakemake_lists_it(clock):
    messages = PlainMessages(lambda: None, is_dry_run=lambda: True, now=clock)
    assert len(shown(messages, started(1, "Train a"), record("Job stats:"))) == 2


def test_other_messages_and_errors_pass(messages):
    assert shown(messages, record("Job stats:"), record("Error in rule train", logging.ERROR)) == [
        "Job stats:", "Error in rule train",
    ]  # fmt: skip


def test_ctrl_c_ends_in_one_sentence(messages):
    ended = [
        record("Terminating processes on user request, this might take some time."),
        record("Error in rule train", logging.ERROR),
        record("WorkflowError: ...", logging.ERROR, exception="WorkflowError"),
    ]
    assert shown(messages, *ended)[1:] == [INTERRUPTED]
    assert messages.is_interrupted
