# What Snakemake prints (selfdistill.plan.messages).

from snakemake.logging import logger

from selfdistill.plan.messages import PlainMessages

MESSAGES = PlainMessages(lambda: PLAN.planner, is_dry_run=lambda: workflow.dryrun)
if workflow.is_main_process:
    logger.addFilter(MESSAGES)
