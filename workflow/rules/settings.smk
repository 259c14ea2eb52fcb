# Settings files are read once before Snakemake reads them: it accepts a key that appears twice, and its message about a
# syntax error names neither file nor line.

import functools
import gc
import sys
from pathlib import Path

# What Snakemake has loaded stays loaded. Looking at it again and again for garbage takes a seventh of a plan's time.
gc.freeze()

from selfdistill.plan.settings import CONFIG_FILE
from selfdistill.schema.errors import UserError, disk_problem
from selfdistill.schema.yaml_file import read_yaml


def one_line(function):
    """A user's mistake ends the workflow with its message, not with a traceback."""

    @functools.wraps(function)
    def wrapped(*arguments, **keywords):
        try:
            return function(*arguments, **keywords)
        except (UserError, OSError) as error:
            message = (
                str(error) if isinstance(error, UserError) else disk_problem(error)
            )
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    return wrapped


@one_line
def check_folder():
    if set("{}") & set(str(Path.cwd())):
        raise UserError(
            f"{Path.cwd()}: Snakemake takes braces in a path for wildcards. Move the checkout to another folder."
        )


@one_line
def check_syntax():
    overlays = map(Path, workflow.config_settings.configfiles)
    for path in (Path(CONFIG_FILE), *overlays, *Path("profiles").glob("*/config.yaml")):
        read_yaml(path)


if workflow.is_main_process:
    check_folder()
    check_syntax()
