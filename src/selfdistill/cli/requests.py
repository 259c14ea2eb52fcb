"""What each rule would request from Slurm: the options of sbatch, written by the executor plugin itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from selfdistill.artifacts.lineage import base_slug
from selfdistill.plan.graph import Node
from selfdistill.plan.runtime import merged_settings
from selfdistill.plan.site import PROFILE, Site, slurm_resources
from selfdistill.schema.runtime import Resources, RuntimeConfig
from selfdistill.schema.yaml_file import read_yaml


class _Resources(dict):
    """Resources as the plugin reads them: by key and by attribute."""

    __getattr__ = dict.__getitem__


def site() -> Site:
    """The site of profiles/slurm/config.yaml; an empty one if the file does not exist."""
    path = Path(PROFILE)
    profile = read_yaml(path) if path.is_file() else {}
    return Site.of(profile.get("default-resources")) or Site()


def requests(runtime: RuntimeConfig, nodes: Iterable[Node]) -> list[tuple[str, str, int, str]]:
    """(rule, model, number of jobs, options) for every kind of job in a plan, in the order of the plan."""
    here, kinds = site(), Counter({node.id: (node.stage, base_slug(node)) for node in nodes}.values())
    return [
        (stage, model or "-", count, options(merged_settings(runtime, stage, model)[1], here))
        for (stage, model), count in kinds.items()
    ]


def options(needs: Resources, here: Site) -> str:
    """Options of sbatch for one job, as Snakemake's Slurm executor writes them."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    resources = _Resources(slurm_resources(needs, here))
    job: Any = SimpleNamespace(resources=resources, threads=needs.cpus)
    account, partition = resources["slurm_account"], resources["slurm_partition"]
    parts = {
        "run_uuid": "", "slurm_logfile": "", "comment_str": "", "workdir": "",
        "account": f"-A {account}" if account else "", "partition": f"-p {partition}" if partition else "",
    }  # fmt: skip
    command = get_submit_command(job, parts) + set_gres_string(job)
    return " ".join(command.split("--comment ''", 1)[1].split())
