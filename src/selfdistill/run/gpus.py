"""One machine, several jobs, some GPUs: each job gets GPUs of its own.

On a cluster Slurm hands out GPUs. On one machine a job takes as many as it asks for, by a lock on each (held until the
process ends, however it ends), and shows its libraries those alone through CUDA_VISIBLE_DEVICES. Jobs of other
projects of the same user respect the same locks.
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
    """Names of the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all that the driver lists."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []


def gpus_of(index: int, per_process: int, visible: Sequence[str]) -> list[str]:
    """The GPUs of one of several processes of a job, in the words of CUDA_VISIBLE_DEVICES. UserError: too few."""
    own = list(visible[index * per_process : (index + 1) * per_process])
    if len(own) < per_process:
        raise UserError(
            f"runtime: the processes and engines of this job ask for more GPUs than the {len(visible)} that it has "
            f"({','.join(visible)}): lower samplers, separate_samplers or tensor_parallel, or ask for more in "
            "resources.gpus (config/runtime.yaml)."
        )
    return own


@contextmanager
def own_gpus(
    count: int, gpus: Sequence[str], say: Callable[[str], None], poll_seconds: float = _POLL_SECONDS
) -> Iterator[list[str]]:
    """Wait until `count` of `gpus` are free, hold them, and make them the visible ones.

    All or none are taken, so that two jobs never wait for each other. Raises UserError where there are fewer.
    """
    if len(gpus) < count:
        raise UserError(
            f"this job asks for {count} GPUs and sees {len(gpus)}. "
            "Lower `gpus` and `processes` of its stage and model in config/runtime.yaml, or use a larger machine."
        )
    folder = Path(tempfile.gettempdir()) / f"selfdistill-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    before = os.environ.get(VISIBLE)
    is_told = False
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
        if not is_told:
            say(f"waiting: {count} of {len(gpus)} GPUs are wanted, and other jobs hold too many of them.")
            is_told = True
        time.sleep(poll_seconds)


def _take(count: int, gpus: Sequence[str], folder: Path, held: ExitStack) -> list[str] | None:
    """Lock `count` GPUs; None where not so many are free."""
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
