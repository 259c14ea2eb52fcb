"""The environment of a process: packages against the lock, GPUs with driver and CUDA, container."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

LOCKS = Path("requirements")
#: Set where the image is built or started: `sha256:...` of the image, and the lock that it was built from.
CONTAINER_DIGEST, CONTAINER_LOCK = "SELFDISTILL_CONTAINER_DIGEST", "SELFDISTILL_CONTAINER_LOCK"
#: The file that each engine puts into its containers.
_MARKS = {"docker": Path("/.dockerenv"), "podman": Path("/run/.containerenv")}
#: Installers are no part of what runs.
_INSTALLERS = {"pip", "setuptools", "wheel", "uv", "selfdistill"}


def devices() -> dict[str, Any]:
    """Processors and GPUs of this machine, with the driver and with CUDA as torch was built; nulls without GPUs."""
    torch = sys.modules.get("torch")
    return {
        "cpus": os.cpu_count(),
        "cpu": _processor(),
        "machine": platform.machine(),
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cuda_version": getattr(getattr(torch, "version", None), "cuda", None),
        **_gpus(),
    }


def container(environment: Mapping[str, str] = os.environ) -> dict[str, str | None] | None:
    """Kind, image, digest and lock of the container that this process runs in; None outside one."""
    image = environment.get("APPTAINER_CONTAINER") or environment.get("SINGULARITY_CONTAINER")
    kind = "apptainer" if image else next((kind for kind, mark in _MARKS.items() if mark.exists()), None)
    digest, lock = environment.get(CONTAINER_DIGEST), environment.get(CONTAINER_LOCK)
    if kind is None and digest is None and lock is None:
        return None
    return {"kind": kind, "image": image, "digest": digest, "lock": lock}


def packages(locks: Path = LOCKS) -> dict[str, Any]:
    """The lock that is nearest to what is installed, and every difference from it.

    `changed`: package -> [version in the lock, installed version]; `missing`: only in the lock; `extra`: only
    installed. A build (`2.13.0+cpu`) of the locked version is no difference.
    """
    found = installed()
    compared = {path.name: _differences(read_lock(path), found) for path in sorted(locks.glob("*.lock.txt"))}
    if not compared:
        return {"lock": None}
    nearest = min(compared, key=lambda name: sum(len(entries) for entries in compared[name].values()))
    return {"lock": nearest, **compared[nearest]}


def read_lock(path: Path) -> dict[str, str]:
    """Package -> version of a lock file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = (line.split(";")[0].partition("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name.split("[")[0].strip()): version.strip() for name, _, version in pins if version}


def installed(folders: Iterable[str] = tuple(sys.path)) -> dict[str, str]:
    """Package -> version, from the names of the folders that hold their records; the first one found counts."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted(Path(folder or ".").glob("*.dist-info")):
            name, _, version = path.name.removesuffix(".dist-info").partition("-")
            found.setdefault(canonicalize_name(name), version)
    return found


def _differences(lock: Mapping[str, str], found: Mapping[str, str]) -> dict[str, Any]:
    found = {name: version for name, version in found.items() if name not in _INSTALLERS}
    lock = {name: version for name, version in lock.items() if name not in _INSTALLERS}
    return {
        "changed": {
            name: [lock[name], version]
            for name, version in sorted(found.items())
            if name in lock and not _same(lock[name], version)
        },
        "missing": sorted(lock.keys() - found.keys()),
        "extra": {name: found[name] for name in sorted(found.keys() - lock.keys())},
    }


def _same(locked: str, version: str) -> bool:
    try:
        return Version(version) == Version(locked) or Version(version).public == Version(locked).base_version == locked
    except InvalidVersion:
        return version == locked


@cache
def _gpus() -> dict[str, Any]:
    """Names and memory of the GPUs, and the version of their driver."""
    none = {"gpus": [], "driver": None}
    if shutil.which("nvidia-smi") is None:
        return none
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, errors="replace", timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return none
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.stdout.splitlines()]
    rows = [row for row in rows if len(row) == 3] if listed.returncode == 0 else []
    return {"gpus": [f"{name}, {memory}" for name, memory, _ in rows], "driver": rows[0][2] if rows else None}


@cache
def _processor() -> str | None:
    """Model of the processor, on which the last digits of floating point results may depend."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else None
