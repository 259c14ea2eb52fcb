"""What a process inherits from the one that starts it, and what its Python loads: all that a fork cannot choose.

Two processes with the same surroundings run the same code in the same way. Read from Linux's /proc. Not in it, because
it differs between a job and a fork in any case: the controlling terminal, the session and the process group.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from selfdistill.files import sha256_file, sha256_text

_PACKAGE = Path(__file__).resolve().parents[1]
_PROC = Path("/proc/self")
#: Variables that differ between jobs of one command, or between commands of one terminal. A fork gets them by itself.
_OF_ONE_JOB = {"_", "SHLVL", "OLDPWD", "SELFDISTILL_RUN"}
#: Lines of /proc/self/status: umask, users, blocked and ignored signals, capabilities, filters, processors.
_STATUS = (
    "Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
    "Seccomp", "Cpus_allowed", "Mems_allowed",
)  # fmt: skip


def are_known() -> bool:
    return (_PROC / "status").is_file()


def digest() -> str:
    """Digest of the surroundings of this process: 16 hexadecimal digits."""
    return sha256_text(json.dumps(surroundings(), sort_keys=True))[:16]


def surroundings() -> dict[str, Any]:
    """What the digest stands for."""
    return {
        "python": [sys.executable, sys.version, list(map(str, sys.flags)), sys.warnoptions, sorted(sys._xoptions)],
        "package": [str(_PACKAGE), _digest_of_code()],
        "installed": [[path, Path(path).stat().st_mtime_ns] for path in sys.path if path.endswith("-packages")],
        "path": sys.path,
        "folder": os.getcwd(),
        "environment": {name: value for name, value in os.environ.items() if name not in _OF_ONE_JOB},
        "status": [line for line in _lines("status") if line.split(":")[0] in _STATUS],
        "limits": _lines("limits"),
        "cgroup": _lines("cgroup"),
        "namespaces": {path.name: os.readlink(path) for path in sorted((_PROC / "ns").iterdir())},
        "priority": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), *_lines("oom_score_adj")],
    }


def _lines(name: str) -> list[str]:
    path = _PROC / name
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _digest_of_code() -> str:
    files = sorted(_PACKAGE.rglob("*.py"))
    return sha256_text("".join(f"{path.relative_to(_PACKAGE)} {sha256_file(path)}\n" for path in files))
