# What all rules use: the plan, the launcher, and short names for inputs, outputs and resources.

import shlex
import sys

from selfdistill.artifacts import refusal
from selfdistill.plan.config_files import ConfigFiles
from selfdistill.plan.site import RESOURCE_NAMES, Site
from selfdistill.plan.views import TABLES
from selfdistill.plan.workspace import Workspace

# Jobs on a cluster parse this file again, but only the main process may plan.
FILES = ConfigFiles(
    workflow.config_settings.configfiles, workflow.config_settings.config
)
PLAN = Workspace(config, files=FILES, plans=workflow.is_main_process)
if workflow.is_main_process:
    refusal.begin_run()
    one_line(PLAN.check)()


def literal(text):
    """A word of a shell command, as it is: Snakemake fills in what stands in braces."""
    return shlex.quote(text).replace("{", "{{").replace("}", "}}")


# `exec` replaces the shell: a signal to all processes of a job would end the shell before the stage has saved its state.
PYTHON = literal(sys.executable)
LAUNCH = f"exec {PYTHON} -m selfdistill.run.launch"
RUNTIME = f"--runtime {literal(PLAN.runtime_file)}"
# A job of a cluster has GPUs of its own, and its processes must end with it. Jobs on one machine share both GPUs and a
# process with the libraries loaded, also inside a Slurm allocation.
if workflow.remote_exec:
    RUNTIME += " --gpus-assigned"
elif PLAN.runtime.warm_start:
    RUNTIME += " --warm"
VIEW = f"exec {PYTHON} -m selfdistill.views"


NAME = r"[a-z][a-z0-9_]*"


wildcard_constraints:
    run=r"[a-z0-9._-]{1,60}-[0-9a-f]{12}",
    view="|".join(TABLES),
    name=NAME,
    shard=r"[0-9]+-of-[0-9]+",


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

    @one_line
    def manifests(wildcards):
        return [ancient(path) for path in PLAN.upstream(stage, wildcards.run)]

    return manifests


def view_and_name(wildcards):
    """What a table's path says; the report has neither."""
    return wildcards.get("view", "report"), wildcards.get("name", "report")


@one_line
def view_plan(wildcards):
    """The plan of a view. It is an input, so a view whose plan changes is made again."""
    return PLAN.view_inputs(*view_and_name(wildcards))[0]


@one_line
def view_manifests(wildcards):
    """The manifests of the artifacts that a view shows."""
    return PLAN.view_inputs(*view_and_name(wildcards))[1:]


@one_line
def view_digest(wildcards):
    """Digest of a view's plan: the job checks that it reads the plan it was scheduled with."""
    return PLAN.plan_digest(*view_and_name(wildcards))


@one_line
def part_plan(wildcards):
    """The plan of the report that a figure or table is a part of."""
    return PLAN.view_inputs("report", wildcards.report)[0]


@one_line
def part_manifests(wildcards):
    return PLAN.view_inputs("report", wildcards.report)[1:]


@one_line
def part_digest(wildcards):
    return PLAN.plan_digest("report", wildcards.report)


def shards(stage):
    """Markers of the shards of a job that config/runtime.yaml spreads over several jobs; none otherwise."""

    @one_line
    def markers(wildcards):
        return [ancient(path) for path in PLAN.shard_markers(stage, wildcards.run)]

    return markers


def shard_marker(stage):
    return f"results/artifacts/{stage}/{{run}}/shards/{{shard}}.done"


def launch(stage, is_shard=False):
    """The command of a stage, or of one shard of its prompts."""
    target = "{output}"
    if is_shard:
        manifest = artifact(stage).replace("{run}", "{wildcards.run}")
        target = f"{manifest} --shard {{wildcards.shard}} --marker {{output}}"
    return f"{LAUNCH} {stage} {target} --log {{log}} {RUNTIME}"


def make_view(view):
    """The command of a table or of the report."""
    check = f"--check-mb {PLAN.runtime.view_check_mb:g}"
    return f"{VIEW} {view} {{input.plan}} {{output}} --digest {{params.digest}} {check} --log {{log}}"


def label(stage):
    """The readable name of an artifact, with the experiments that use it."""
    return lambda wildcards: PLAN.label(
        stage,
        wildcards.run,
        wildcards.get("shard", ""),
        on_cluster=SITE is not None,
    )


def needs(stage):
    """Resources of a job, from config/runtime.yaml and the site."""

    @one_line
    def requested(wildcards, attempt):
        shard = wildcards.get("shard", "")
        return PLAN.resources(stage, wildcards.run, attempt, SITE, shard)

    def one(name):
        return lambda wildcards, attempt: requested(wildcards, attempt).get(name)

    return {name: one(name) for name in RESOURCE_NAMES}


def cores(stage):
    @one_line
    def cpus(wildcards, attempt):
        return PLAN.needs(stage, wildcards.run, attempt).cpus

    return cpus


if workflow.is_main_process and SITE and SITE.problem:
    print(
        f"warning: {SITE.problem} Nothing will be submitted until they are filled in.",
        file=sys.stderr,
    )


onstart:
    # By default Snakemake starts at most a hundred jobs a second. For that it looks at all ready jobs again a second
    # after each look; every finished job adds a look a second, and after some hundred it is busier than the jobs.
    limit = workflow.scheduler.job_rate_limiter
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
    wrong = SITE and (SITE.problem or SITE.refused_account())
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
