"""Code from outside the package must be what was planned, since its digest is in the key."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.artifacts.source_digest import outside_digest
from selfdistill.grading import check_machine
from selfdistill.schema.common import Grader
from selfdistill.schema.errors import UserError
from selfdistill.schema.outside import look_in_project


def check_code(what: str, modules: Sequence[str], planned: str | None) -> None:
    """Raise UserError where the code of these modules is no longer the one that was planned."""
    look_in_project()
    try:
        found = outside_digest(modules)
    except FileNotFoundError as error:
        raise UserError(f"the code of {what} is gone: there is no Python source of {error}.") from None
    if found != planned:
        raise UserError(
            f"the code of {what} ({', '.join(modules)}) has changed since this run was planned: run the same snakemake "
            "command again, which plans a run of the new code."
        )


def check_grader(grader: Grader) -> None:
    """Raise UserError where this machine cannot grade: better now than after hours of sampling."""
    if grader.kind == "python":
        check_code(f"grader {grader.function}", [grader.function.partition(":")[0]], grader.code)
    check_machine(grader)
