"""The doctor's checks of Slurm: its commands, the controller, partitions, accounting, and the profile."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from selfdistill.cli.checks import FAIL, OK, WARN, Check, output_of
from selfdistill.cli.requests import site
from selfdistill.plan.site import PROFILE, unless_none
from selfdistill.schema.yaml_file import read_yaml

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
#: squeue forgets a finished job after MinJobAge; Snakemake may ask as rarely as every three minutes.
_MIN_JOB_AGE_SECONDS = 200


def commands() -> Iterator[Check]:
    absent = [name for name in _COMMANDS if shutil.which(name) is None]
    if len(absent) == len(_COMMANDS):
        yield Check("slurm", OK, "not on this machine (--profile local does not need it)")
    elif absent:
        yield Check("slurm", FAIL, f"{', '.join(absent)} not found")
    elif "is UP" not in (output_of("scontrol", "ping") or ""):
        yield Check("slurm", FAIL, "its controller does not answer (scontrol ping)")
    else:
        yield Check("slurm", OK, f"{(output_of('sinfo', '--version') or '').strip()}, its controller answers")


def partitions() -> Iterator[Check]:
    """One line for each partition, and whether the one in the profile exists."""
    listed = output_of("sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G")
    known = []
    for line in (listed or "").splitlines():
        name, up, limit, nodes, cpus, memory, gres = (part.strip() for part in line.split("|"))
        known.append(name.rstrip("*"))
        default = ", the default" if name.endswith("*") else ""
        text = f"{name.rstrip('*')}: {up}{default}, {nodes} nodes of {cpus} CPUs, {memory} MB, {gres}, limit {limit}"
        yield Check("partition", OK if up == "up" else WARN, text)
    if listed is None:
        return
    here = site()
    for wanted in filter(None, map(unless_none, (here.slurm_partition, here.slurm_gpu_partition))):
        if wanted not in known:
            yield Check("partition", FAIL, f"{PROFILE}: there is no partition `{wanted}`. Known: {', '.join(known)}")


def profile() -> Iterator[Check]:
    """The block "Your site"."""
    here = site()
    if shutil.which("sbatch") is None and here.problem:
        return
    wrong = here.refused_account()
    if here.problem or wrong:
        yield Check("site", FAIL if wrong else WARN, here.problem or str(wrong))
    else:
        yield Check("site", OK, _describe())


def _describe() -> str:
    here = site()
    gpu = f", GPUs by {here.gpus_as}" + (f" named {here.gpu_type}" if here.gpu_type else "")
    return f"account {here.slurm_account}, partition {here.slurm_partition}{gpu}"


def accounting() -> Iterator[Check]:
    """Whether the profile's way of asking for job states works on this cluster."""
    config = output_of("scontrol", "show", "config")
    if config is None:
        return
    settings = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", config, re.MULTILINE))
    has_accounts = settings.get("AccountingStorageType", "") not in ("accounting_storage/none", "(null)", "")
    path = Path(PROFILE)
    asked = (read_yaml(path) if path.is_file() else {}).get("slurm-status-command", "sacct")
    age = int(re.sub(r"\D", "", settings.get("MinJobAge", "")) or 0)
    if asked == "sacct" and not has_accounts:
        text = f"{PROFILE}: slurm-status-command: sacct, but this cluster has no accounting. Set it to squeue"
        yield Check("accounting", FAIL, text)
    elif asked == "squeue" and age < _MIN_JOB_AGE_SECONDS:
        text = f"{PROFILE}: slurm-status-command: squeue, but Slurm forgets finished jobs after {age} s (MinJobAge)"
        yield Check("accounting", WARN, text + (". Set it to sacct" if has_accounts else ""))
    else:
        yield Check("accounting", OK, f"{'on' if has_accounts else 'off'}; the profile uses {asked}")


CHECKS = [("slurm", commands), ("partition", partitions), ("site", profile), ("accounting", accounting)]
