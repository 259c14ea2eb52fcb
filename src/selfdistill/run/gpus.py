"""GPUs of one machine, reserved by jobs that run at the same time.

On a cluster Slurm assigns GPUs to jobs. On one machine, or for several jobs inside one Slurm allocation, a job locks as
many GPUs as it needs and sees only those (CUDA_VISIBLE_DEVICES). A lock is released when its process exits or dies.
All projects of a user share the locks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from selfdistill.schema.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 2.0


def visible_gpus() -> list[str]:
    """GPUs that this process may use: those in CUDA_VISIBLE_DEVICES, else all that the driver lists."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
        capture_output=True, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []


@contextmanager
def reserve_gpus(
    count: int, gpus: Sequence[str], report: Callable[[str], None], poll_seconds: float = _POLL_SECONDS
) -> Iterator[list[str]]:
    """Wait until `count` of `gpus` are free, lock them, and make only these visible.

    A job locks all or none, so that two jobs never wait for each other. Raises UserError where there are fewer.
    """
    if len(gpus) < count:
        raise UserError(
            f"this job needs {count} GPUs and sees {len(gpus)}. "
            "Lower `gpus` and `processes` of its stage and model in config/runtime.yaml, or use a larger machine."
        )
    # Every Slurm job has a GPU 0: its locks are not those of another job on the same node.
    allocation = f"-{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    folder = Path(tempfile.gettempdir()) / f"selfdistill-gpus-{os.getuid()}{allocation}"
    folder.mkdir(mode=0o700, exist_ok=True)
    before = os.environ.get(VISIBLE)
    is_reported = False
    while True:
        with ExitStack() as held:
            taken = _take(count, gpus, folder, held)
            if taken is not None:
                os.environ[VISIBLE] = ",".join(taken)
                try:
                    yield taken
                finally:
                    os.environ.pop(VISIBLE)
                    os.environ |= {} if before is None else {VISIBLE: before}
                return
        if not is_reported:
            report(f"waiting for {count} of {len(gpus)} GPUs; other jobs use them.")
            is_reported = True
        time.sleep(poll_seconds)


def _take(count: int, gpus: Sequence[str], folder: Path, held: ExitStack) -> list[str] | None:
    """Lock `count` GPUs; None where fewer are free."""
    taken: list[str] = []
    for gpu in gpus:
        lock = FileLock(folder / f"{gpu.replace('/', '_')}.lock", timeout=0)
        try:
            held.enter_context(lock)
        except Timeout:
            continue
        taken.append(gpu)
        if len(taken) == count:
            return taken
    return None
