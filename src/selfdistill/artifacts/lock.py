"""The lock of an artifact: one job at a time, and all processes of that job count.

A lock of the kernel (flock) belongs to an open file, not to a process. A child that inherits the descriptor therefore
holds the lock too: it is free when the job and every such child have ended, however they ended.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from selfdistill.schema.errors import UserError

LOCK_FILE = ".lock"


def lock_path(folder: Path, shard: str = "") -> Path:
    """The lock of an artifact, or of one shard of it (`2-of-8`)."""
    return folder / (f"{LOCK_FILE}-{shard}" if shard else LOCK_FILE)


@contextmanager
def hold_lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold the lock while the block runs; yields the descriptor that children may inherit.

    `on_wait` is called once if another job holds the lock, before waiting for it. UserError where the path is a folder,
    or on a file system without locks.
    """
    try:
        descriptor = _acquire(path, on_wait)
    except FileNotFoundError:
        raise UserError(f"{path.parent} was removed: run the same snakemake command again, which plans it.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, but must be a file, the lock of its artifact: move it away.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        raise UserError(
            f"{path}: this file system has no locks ({error.strerror}), so two jobs could write one artifact. Mount it "
            "with locks (Lustre: -o flock), or keep results/ on another one."
        ) from None
    try:
        yield descriptor
    finally:
        # Closed, not unlocked: a child that has not ended yet keeps the lock.
        os.close(descriptor)


def _acquire(path: Path, on_wait: Callable[[], None]) -> int:
    """A descriptor that holds the lock of the file that has this name now; it may be removed while this waits."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not lock_descriptor(descriptor, blocking=False):
                on_wait()
                lock_descriptor(descriptor)
            if _is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that has this name now: its folder may have been moved or made again."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


@contextmanager
def hold_if_idle(folder: Path) -> Iterator[bool]:
    """Hold every lock of an artifact, so that no job of it can start; False, and nothing is held, if one runs."""
    with ExitStack() as held:
        try:
            for path in sorted({lock_path(folder), *folder.glob(f"{LOCK_FILE}-*")}):
                held.enter_context(FileLock(path, timeout=0))
        except Timeout:
            held.close()
            yield False
            return
        yield True


def is_busy(folder: Path) -> bool:
    """Whether a job computes an artifact, or a shard of it."""
    return any(is_locked(path) for path in folder.glob(f"{LOCK_FILE}*"))


def is_locked(path: Path) -> bool:
    """Whether a job holds this lock."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
