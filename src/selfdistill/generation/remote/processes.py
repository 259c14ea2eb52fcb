"""Starting and ending sampling processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from selfdistill.generation.remote.server import ServerSettings
from selfdistill.parent import say_end

#: Variables by which a launcher gives a process its rank: a sampling process has none.
_LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK",
    "GROUP_WORLD_SIZE", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_",
)  # fmt: skip
#: Time between closing the connection and a kill. A process that is starting its engine notices after a few seconds.
_GRACE_SECONDS = 30


def without_launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_LAUNCHER_VARIABLES)}


def start_servers(
    settings: Sequence[ServerSettings],
    environments: Sequence[Mapping[str, str]],
    log: Path,
    kept_open: Collection[int] = (),
) -> list[subprocess.Popen[bytes]]:
    """One process for each of the settings. Each leads a process group, since an engine may start processes, too.

    `kept_open`: descriptors that they inherit, such as that of a lock that they must hold while they live.
    """
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        return [
            subprocess.Popen(
                [sys.executable, "-m", "selfdistill.generation.remote.server", each.model_dump_json()],
                env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
                pass_fds=tuple(kept_open),
            )
            for each, environment in zip(settings, environments, strict=True)
        ]  # fmt: skip


def stop_servers(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Let the processes exit, kill what is left of their groups, and remove the folder of their sockets."""
    for process in processes:
        say_end(process)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
