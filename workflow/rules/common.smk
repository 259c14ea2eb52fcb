# What all rules use: the plan, the launcher, and short names for inputs, outputs and resources.

import shlex
import sys

from selfdistill.artifacts import refusal
from selfdistill.plan.site import RESOURCE_NAMES, Site
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.errors import UserError

# Jobs on a cluster parse this file again; only the main process may plan.
PLAN = Workspace(config, plans=workflow.is_main_process)
# No shell stays between Snakemake and a stage: a signal for all of a job's processes would end it before the stage
# has saved its state.
PYTHON = shlex.quote(sys.executable)
LAUNCH = f"exec {PYTHON} -m selfdistill.run.launch"
RUNTIME = f"--runtime {shlex.quote(PLAN.runtime_file)}" + (
    " --warm" if PLAN.runtime.warm_start else ""
)
VIEW = f"exec {PYTHON} -m selfdistill.views"


wildcard_constraints:
    run=r"[a-z0-9._-]{1,60}-[0-9a-f]{12}",
    name=r"[a-z][a-z0-9_]*",
    shard=r"[0-9]+-of-[0-9]+",


def one_line(function):
    """A user's mistake ends the workflow with its message, not with a traceback."""

    def wrapped(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped


@one_line
def checked_plan():
    return PLAN.check()


@one_line
def slurm_site():
    """The site of --profile slurm; None on one machine."""
    given = workflow.resource_settings.default_resources
    return Site.of(dict(entry.split("=", 1) for entry in given.args) if given else None)


SITE = slurm_site()


def artifact(stage):
    return f"results/artifacts/{stage}/{{run}}/manifest.json"


def upstream(stage):
    """Manifests of the inputs in the frozen spec; their time stamps never cause a rerun."""
    return one_line(
        lambda wildcards: [
            ancient(path) for path in PLAN.upstream(stage, wildcards.run)
        ]
    )


def behind(view):
    """The plan of a view and the manifests it names."""
    files = one_line(
        lambda wildcards: PLAN.view_inputs(view, wildcards.get("name", view))
    )
    return {
        "plan": lambda wildcards: files(wildcards)[0],
        "manifests": lambda wildcards: files(wildcards)[1:],
    }


def shards(stage):
    """Markers of the shares of a job that config/runtime.yaml spreads over several; none otherwise."""
    return one_line(
        lambda wildcards: [
            ancient(path) for path in PLAN.shard_markers(stage, wildcards.run)
        ]
    )


def shard_marker(stage):
    return f"results/artifacts/{stage}/{{run}}/shards/{{shard}}.done"


def launch(stage, is_share=False):
    """The command of a stage, or of one share of its prompts."""
    target = "{output}"
    if is_share:
        manifest = artifact(stage).replace("{run}", "{wildcards.run}")
        target = f"{manifest} --shard {{wildcards.shard}} --marker {{output}}"
    return f"{LAUNCH} {stage} {target} --log {{log}} {RUNTIME}"


def make_view(view):
    """The command of a table or page."""
    return f"{VIEW}.{view} {{input.plan}} {{output}} --digest {{params.digest}} --log {{log}}"


def digest(view):
    return one_line(
        lambda wildcards: PLAN.plan_digest(view, wildcards.get("name", view))
    )


def label(stage, is_share=False):
    return lambda wildcards: PLAN.label(stage, wildcards.run, is_share=is_share)


def needs(stage, is_share=False):
    """What a job asks for, from config/runtime.yaml and the site; memory grows with each attempt."""
    requested = one_line(
        lambda wildcards, attempt: PLAN.resources(
            stage, wildcards.run, attempt, SITE, is_share=is_share
        )
    )

    def one(name):
        return lambda wildcards, attempt: requested(wildcards, attempt).get(name)

    return {name: one(name) for name in RESOURCE_NAMES}


def cores(stage):
    found = one_line(
        lambda wildcards, attempt: PLAN.needs(stage, wildcards.run, attempt)
    )
    return lambda wildcards, attempt: found(wildcards, attempt).cpus


if workflow.is_main_process:
    refusal.begin_run()
    checked_plan()
    if SITE and SITE.problem:
        print(f"warning: {SITE.problem} Nothing is submitted before.", file=sys.stderr)


onstart:
    wrong = SITE and (SITE.problem or SITE.refused_account())
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
