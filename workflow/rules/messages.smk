# Messages of Snakemake that do not say what to do next, in words that do.

import logging
import re

from snakemake.logging import logger

from selfdistill.plan.views import unknown_target


class PlainMessages(logging.Filter):
    """An unknown target is answered with those that exist, Ctrl-C with how to continue."""

    is_interrupted = False

    def filter(self, record):
        message = record.getMessage()
        exception = getattr(record, "exception", None)
        if message.startswith("Terminating processes on user request"):
            self.is_interrupted = True
        elif exception == "MissingRuleException":
            found = re.search(r"No rule to produce (\S+)", message)
            if found:
                self.replace(record, f"error: {unknown_target(PLAN.planner, found[1])}")
        elif self.is_interrupted and exception == "WorkflowError":
            self.replace(
                record,
                "interrupted: what is finished is kept, and a training continues from its last saved state. "
                "Run the same command again. (`selfdistill track` shows the runs in MLflow before that.)",
            )
        elif self.is_interrupted and record.levelno >= logging.ERROR:
            return False  # jobs that failed because they were interrupted
        return True

    @staticmethod
    def replace(record, message):
        record.msg, record.args = message, ()


MESSAGES = PlainMessages()
if workflow.is_main_process:
    logger.addFilter(MESSAGES)
