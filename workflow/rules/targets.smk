# What a user reads who asks for a target that does not exist: Snakemake's own message does not say what there is.

import logging
import re

from snakemake.logging import logger

from selfdistill.plan.views import unknown_target


class ListTargets(logging.Filter):
    """Adds the nearest target and the list of targets to the message `No rule to produce ...`."""

    def filter(self, record):
        if getattr(record, "exception", None) == "MissingRuleException":
            found = re.search(r"No rule to produce (\S+)", record.getMessage())
            if found:
                message = f"error: {unknown_target(PLAN.planner, found[1])}"
                record.msg, record.args = message, ()
        return True


if workflow.is_main_process:
    logger.addFilter(ListTargets())
