"""Which sandbox this machine offers: bubblewrap, the kernel's own namespaces, or none.

The first that passes a trial is taken. Where none does, untrusted code is not run, unless the settings say so in so
many words. What the guest can see: the system's libraries, the Python installation without its packages (NumPy is let
in), a few devices, and an empty folder. No home, no project, no environment, no network.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from selfdistill.grading.sandbox import guest, kernel, system_calls

Backend = Literal["bubblewrap", "kernel", "none"]

#: Whom the guest is: the user whom everybody calls nobody.
_UID = 65534
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = (("/dev/stdin", "/proc/self/fd/0"), ("/dev/stdout", "/proc/self/fd/1"), ("/dev/stderr", "/proc/self/fd/2"))
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
#: Packages that a program may import besides the standard library, as the judges of programming contests allow.
_PACKAGES = ("numpy", "numpy.libs")
_TRIAL_SECONDS = 60.0
#: On a busy machine a program waits for its turn; only its own time is counted against it, up to this many times.
_PATIENCE = 3


@dataclass(frozen=True)
class Limits:
    """What one run may use. `timeout_seconds` is processor time; the clock on the wall may show three times as much."""

    timeout_seconds: float = 6.0
    memory_mb: int = 1024
    output_mb: int = 16
    scratch_mb: int = 64
    processes: int = 16

    @property
    def wall_seconds(self) -> float:
        return _PATIENCE * self.timeout_seconds + 1

    def settings(self) -> dict[str, object]:
        """What the guest is told."""
        return {
            "uid": _UID,
            "cpu_seconds": math.ceil(self.timeout_seconds),
            "wall_seconds": self.wall_seconds,
            "memory_bytes": self.memory_mb << 20,
            "output_bytes": self.output_mb << 20,
            "scratch_bytes": self.scratch_mb << 20,
            "processes": self.processes,
            "is_unsandboxed": True,
        }

    def sandboxed_settings(self) -> dict[str, object]:
        """What the guest of a sandbox is told. Raises RuntimeError without libseccomp."""
        calls = {"keyctl": system_calls.keyctl_number(), "filter": system_calls.compiled_filter().hex()}
        return self.settings() | calls | {"is_unsandboxed": False}


def start(backend: Backend, limits: Limits) -> subprocess.Popen[bytes]:
    """The process of a guest; it writes `ready` when it is. Raises RuntimeError without libseccomp."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
                   "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # fmt: skip
    return subprocess.Popen(
        _COMMANDS[backend](limits),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=_own_folder() if backend == "none" else "/",
        start_new_session=True,
    )


def _own_folder() -> str:
    """An empty folder for a program without a sandbox; it is removed when the guest is closed."""
    folder = tempfile.mkdtemp(prefix="selfdistill-unsandboxed-")
    if os.geteuid() == 0:
        os.chown(folder, _UID, _UID)
    return folder


@cache
def available() -> Backend | None:
    """The first sandbox that works here; None if none does. The trial takes a fraction of a second, once."""
    return next((backend for backend in ("bubblewrap", "kernel") if obstacle(backend) is None), None)


def obstacle(backend: Backend) -> str | None:
    """Why a sandbox does not work here, in one line; None if it does."""
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    try:
        process = start(backend, Limits())
    except (OSError, RuntimeError) as error:
        return str(error)
    try:
        output, errors = process.communicate(timeout=_TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "it did not start in time"
    lines = errors.decode(errors="replace").strip().splitlines()
    return None if output.startswith(b"ready") else lines[-1] if lines else f"exit code {process.returncode}"


def python() -> str:
    """The interpreter itself, not the link in a virtual environment: its packages stay outside."""
    return os.path.realpath(sys.executable)


def visible() -> tuple[list[str], list[tuple[str, str]]]:
    """(paths shown read-only at their own place, symbolic links)."""
    links = [(path, os.readlink(path)) for path in _SYSTEM if os.path.islink(path)]
    shown = [path for path in _SYSTEM if os.path.exists(path) and not os.path.islink(path)]
    shown += [f"/dev/{name}" for name in _DEVICES]
    for folder in (os.path.realpath(sys.base_prefix), os.path.dirname(python())):
        if not any(folder == path or folder.startswith(f"{path}/") for path in shown):
            shown.append(folder)
    return shown, [*links, *_LINKS]


def packages() -> list[tuple[str, str]]:
    """(where an allowed package lies, where the guest sees it)."""
    site = Path(sysconfig.get_paths()["platlib"])
    return [(str(site / name), f"/packages/{name}") for name in _PACKAGES if (site / name).is_dir()]


def _script(module: ModuleType) -> str:
    """Path of a module that is run as a script; imported here, so that its code counts as this package's."""
    return str(Path(str(module.__file__)).resolve())


def _kernel_command(limits: Limits) -> list[str]:
    shown, links = visible()
    binds = [(path, path) for path in shown] + packages()
    settings = limits.sandboxed_settings() | {"binds": binds, "links": links}
    return [python(), "-I", "-S", _script(kernel), json.dumps(settings)]


def _bubblewrap_command(limits: Limits) -> list[str]:
    shown, links = visible()
    # By its full path: the environment that the guest gets does not say where it is.
    command = [
        str(shutil.which("bwrap")),
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--die-with-parent",
    ]
    command += ["--new-session", "--as-pid-1", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        # The guest becomes an unprivileged user itself: bubblewrap would only give root another name.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", str(_UID), "--gid", str(_UID)]
    # Folders that bubblewrap makes on the way are root's alone, so they are made here.
    targets = [*shown, *(target for _, target in packages())]
    for parent in sorted({str(parent) for path in targets for parent in Path(path).parents} - {"/"}):
        command += ["--perms", "0755", "--dir", parent]
    for path in shown:
        command += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    for source, target in [*packages(), (_script(guest), "/guest.py")]:
        command += ["--ro-bind", source, target]
    for path, target in links:
        command += ["--symlink", target, path]
    command += ["--proc", "/proc", "--perms", "1777", "--size", str(limits.scratch_mb << 20), "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--"]
    return [*command, python(), "-I", "-S", "/guest.py", json.dumps(limits.sandboxed_settings())]


def _bare_command(limits: Limits) -> list[str]:
    return [python(), "-I", "-S", _script(guest), json.dumps(limits.settings())]


_COMMANDS: dict[Backend, Callable[[Limits], list[str]]] = {
    "bubblewrap": _bubblewrap_command,
    "kernel": _kernel_command,
    "none": _bare_command,
}
