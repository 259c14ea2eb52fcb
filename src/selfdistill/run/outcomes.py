"""How a stage ended that ran in another process: told in a file, since exceptions do not cross processes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from selfdistill.files import write_atomically
from selfdistill.run.job import Job
from selfdistill.schema.errors import EXIT_USER_ERROR, Interrupted, UserError


def run_stage(job: Job) -> tuple[dict[str, Any], int]:
    """Run the job's stage; returns what is to be told, and the exit code.

    An interruption exits with 0: all processes agreed to leave, and another code would let a launcher kill those that
    are not done yet.
    """
    try:
        return {"summary": importlib.import_module(f"selfdistill.stages.{job.artifact.stage}").main(job)}, 0
    except Interrupted as error:
        return {"interrupted": str(error)}, 0
    except UserError as error:
        return {"error": str(error)}, EXIT_USER_ERROR


def tell(path: Path, outcome: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(outcome))


def hear(path: Path, who: str, code: int) -> dict[str, Any]:
    """The summary that was told. Raises Interrupted and UserError as the stage did, RuntimeError where nobody spoke."""
    if not path.is_file():
        raise RuntimeError(f"{who} ended with code {code} and left no outcome; see the log above")
    outcome = json.loads(path.read_text(encoding="utf-8"))
    if "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["summary"]
