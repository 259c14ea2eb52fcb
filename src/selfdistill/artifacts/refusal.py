"""A refusal: a user's mistake, recorded beside the artifact so that Snakemake's retries of the job end at once.

Snakemake retries every failed job, since it does not see exit codes. The main process gives its run a name, which its
jobs inherit. A job whose artifact was refused in the same run ends at once with the recorded reason. The next command
is another run, which tries again.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from selfdistill.files import pretty_json, read_json, write_atomically

RUN_VARIABLE = "SELFDISTILL_RUN"
_FILE = "refused.json"


def begin_run() -> None:
    """Name this run of Snakemake; its jobs inherit the name. Jobs must not call this."""
    os.environ[RUN_VARIABLE] = uuid.uuid4().hex


def current_run() -> str | None:
    """The name of the run of Snakemake that this process belongs to."""
    return os.environ.get(RUN_VARIABLE) or None


def remember(folder: Path, reason: str) -> None:
    """Record the reason for the retries of this run; does nothing outside a run, or if the folder does not exist."""
    run = current_run()
    if run and folder.is_dir():
        write_atomically(folder / _FILE, pretty_json({"run": run, "reason": reason}))


def recall(folder: Path) -> str | None:
    """Why this artifact was refused earlier in this run, or None."""
    try:
        refused = read_json(folder / _FILE)
        return refused["reason"] if refused["run"] == current_run() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(folder: Path) -> None:
    (folder / _FILE).unlink(missing_ok=True)
