"""The command line of all views.

    python -m selfdistill.views VIEW PLAN.json OUTPUT --digest SHA --log LOG

A view is a function from its plan to the text of its output. The plan must be the one that the job was scheduled
with (`--digest`); the output appears whole or not at all. A user's mistake is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from selfdistill.artifacts.verification import check_limit
from selfdistill.files import write_atomically
from selfdistill.plan.made_views import record_view
from selfdistill.plan.workspace import read_plan
from selfdistill.schema.errors import EXIT_USER_ERROR, UserError

#: View -> module whose `build` makes it; only that one is imported.
MODULES = {
    "ood": "scores",
    "epistemic": "words",
    "curves": "training_curves",
    "richness": "paper_tables",
    "sft": "paper_tables",
    "coverage": "coverage",
    "forced": "forced",
    "tuning": "tuning",
    "diagnostics": "diagnostics",
    "cures": "cures",
    "report": "report",
}

#: Single figures and tables of a report; they are made from the report's plan (`part_files`).
PARTS = ("figures", "tables")

log = logging.getLogger("selfdistill.views")


def builder(view: str) -> Callable[[dict[str, Any]], str]:
    """The function that turns a view's plan into the text of its file."""
    module = import_module(f"selfdistill.views.{MODULES[view]}")
    return getattr(module, f"build_{view}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the plan, build the text, write it; exits with code 2 for a UserError."""
    options = _parse(arguments)
    try:
        handlers = _start_logging(options.log, is_told=options.log is None or options.view == "report")
    except OSError as error:
        print(f"error: {options.log} cannot be written: {error.strerror or error}.", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    try:
        _write(options)
    except UserError as error:
        log.error("%s", error)
        sys.exit(EXIT_USER_ERROR)
    except Exception:
        log.exception("%s: internal error", options.view)
        raise
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _write(options: argparse.Namespace) -> None:
    check_limit.set(int(options.check_mb * 1e6))
    plan = read_plan(options.plan, options.digest)
    wanted = "report" if options.view in PARTS else options.view
    if plan.get("view") != wanted:
        raise UserError(f"{options.plan} is a plan of the view `{plan.get('view')}`, not of `{wanted}`.")
    what = f"{options.view} {plan['name']}"
    log.info("%s: reading %d artifacts", what, len(plan["artifacts"]))
    content = _content(options.view, plan, options.output)
    try:
        write_atomically(options.output, content)
        record_view(options.plan, options.output)
    except OSError as error:
        raise UserError(f"{options.output} cannot be written: {error.strerror or error}.") from None
    log.info("%s: wrote %s (%d bytes)", what, options.output, options.output.stat().st_size)


def _content(view: str, plan: dict[str, Any], output: Path) -> str | bytes:
    if view not in PARTS:
        return builder(view)(plan)
    from selfdistill.views.part_files import part_file  # tables need none of what draws figures

    return part_file(view, plan, output)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m selfdistill.views", description="Write a table or the report.")
    parser.add_argument("view", choices=[*MODULES, *PARTS])
    parser.add_argument("plan", type=Path, help="results/plans/<view>/<name>/plan.json")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--digest", help="SHA-256 of the plan that this job was scheduled with")
    parser.add_argument("--check-mb", type=float, default=256, help="hash files up to this size before reading them")
    parser.add_argument("--log", type=Path, help="file that repeats what is printed")
    return parser.parse_args(arguments)


def _start_logging(path: Path | None, *, is_told: bool) -> list[logging.Handler]:
    """Log to the terminal and to `path`; unless `is_told`, the terminal shows warnings and errors alone."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setLevel(logging.INFO if is_told else logging.WARNING)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, mode="w", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return handlers


if __name__ == "__main__":
    main()
