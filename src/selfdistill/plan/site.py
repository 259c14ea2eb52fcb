"""A user's Slurm site (profiles/slurm/config.yaml), and the resources that a job requests there or on one machine.

    default-resources: {slurm_account: ..., slurm_partition: ..., slurm_gpu_partition: ..., gpus_as: ..., gpu_type: ...}

Each rule turns its needs (config/runtime.yaml) and the site into the resources that Snakemake's Slurm executor reads.
Account and partition must be filled in before anything is submitted; `none` takes Slurm's own default.
"""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from selfdistill.schema.base import Model
from selfdistill.schema.errors import explain_validation
from selfdistill.schema.runtime import Resources

PROFILE = "profiles/slurm/config.yaml"
NONE = "none"
_REQUIRED = ("slurm_account", "slurm_partition")
#: What the retry of a refused job requests: it only repeats its error message, so it need not wait for GPUs.
REFUSED = Resources(mem_mb=2000, runtime_minutes=5, warning_seconds=0)
#: All resources that a rule may request. A job leaves out those that it does not need.
RESOURCE_NAMES = (
    "mem_mb", "runtime", "gpu", "gpu_model", "gres", "nodes", "tasks", "tasks_per_gpu", "slurm_account",
    "slurm_partition", "slurm_extra",
)  # fmt: skip


class Site(Model):
    """The block "Your site" of the profile."""

    slurm_account: str = Field("", description="Account that pays (sbatch --account); none: Slurm's default.")
    slurm_partition: str = Field("", description="Partition (sbatch --partition); none: Slurm's default.")
    slurm_gpu_partition: str = Field("", description="Partition of jobs with GPUs; empty: as the others.")
    gpus_as: Literal["gpus", "gres"] = Field("gpus", description="Form of the request: --gpus=4 or --gres=gpu:4.")
    gpu_type: str = Field("", description="Name of the GPUs where they must be named; empty or none: any.")
    slurm_extra: str = Field("", description="Further options of sbatch, for all jobs.")

    @classmethod
    def of(cls, default_resources: Mapping[str, Any] | None) -> Site | None:
        """The site in a profile's default resources; None where they know nothing of Slurm (one machine)."""
        known = {name: str(value) for name, value in (default_resources or {}).items() if name in cls.model_fields}
        if not known.keys() & set(_REQUIRED):
            return None
        try:
            return cls.model_validate({name: value.strip("\"' ") for name, value in known.items()})
        except ValidationError as error:
            raise explain_validation(error, cls, f"{PROFILE}: default-resources") from None

    @property
    def problem(self) -> str | None:
        """Which fields are still empty, and how to fill them in; None if the site is complete."""
        empty = [name for name in _REQUIRED if not getattr(self, name)]
        if not empty:
            return None
        return (
            f"{PROFILE}: {' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty. Fill in the block "
            f"`Your site`; `{NONE}` takes Slurm's own default."
        )

    def refused_account(self) -> str | None:
        """The error for an account that Slurm does not know, else None. (The executor would wait forever, silently.)"""
        account, known = self.account(), accounts_here()
        if not account or not known or account.lower() in known:
            return None
        return f"{PROFILE}: slurm_account: {account} is not one of your accounts. Known: {', '.join(sorted(known))}."

    def account(self) -> str:
        return unless_none(self.slurm_account)

    def partition(self, gpus: int) -> str:
        return unless_none((self.slurm_gpu_partition if gpus else "") or self.slurm_partition)


def accounts_here() -> set[str]:
    """Accounts of this user, in lower case; empty if Slurm has no accounting or does not answer."""
    words = ["--noheader", "--parsable2", "--associations", "list", "user"]
    try:
        command = ["sacctmgr", *words, getpass.getuser(), "format=account"]
        listed = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, KeyError, subprocess.TimeoutExpired):
        return set()
    return {line.strip().lower() for line in listed.stdout.splitlines() if line.strip()}


def unless_none(value: str) -> str:
    return "" if value.lower() == NONE else value


def slurm_resources(needs: Resources, site: Site) -> dict[str, int | str]:
    """Resources of one job for the Slurm executor.

    `--nodes` is always given: Slurm may serve `--gpus=4` alone from four nodes with one GPU each. A job of several
    nodes requests GPUs per node (`--gres`), since `--gpus` counts the GPUs of the whole job.
    """
    requested: dict[str, int | str] = {
        "mem_mb": needs.mem_mb,
        "runtime": needs.runtime_minutes,
        "nodes": needs.nodes,
        "tasks": needs.nodes,
        "tasks_per_gpu": 0,
        "slurm_account": site.account(),
        "slurm_partition": site.partition(needs.gpus),
        "slurm_extra": _options(needs, site),
    }
    gpu_type = unless_none(site.gpu_type)
    if needs.gpus and (site.gpus_as == "gres" or needs.nodes > 1):
        requested["gres"] = f"gpu:{gpu_type}:{needs.gpus}" if gpu_type else f"gpu:{needs.gpus}"
    elif needs.gpus:
        requested |= {"gpu": needs.gpus} | ({"gpu_model": gpu_type} if gpu_type else {})
    return requested


def _options(needs: Resources, site: Site) -> str:
    """Further options of sbatch: SIGTERM to every process before the time limit, and logs that survive a requeue.

    Slurm may send the signal a minute early, so a short job gets it in its second half, whatever `warning_seconds` is.
    """
    seconds = min(needs.warning_seconds, needs.runtime_minutes * 30)
    warning = [f"--signal=TERM@{seconds}"] if seconds else []
    return " ".join([*warning, "--open-mode=append", *([site.slurm_extra] if site.slurm_extra else [])])


def machine_resources(needs: Resources) -> dict[str, int | str]:
    """Resources of one job on one machine, which Snakemake divides between the jobs that run at the same time."""
    requested = {"mem_mb": needs.mem_mb, "runtime": needs.runtime_minutes}
    return requested | ({"gpu": needs.gpus} if needs.gpus else {})
