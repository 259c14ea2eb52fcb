"""Warm start of many short jobs on one machine: a server process loads the heavy libraries, and jobs are its forks.

Loading torch and transformers takes seconds; the toy study has more than a hundred jobs. With `warm_start: true` in
config/runtime.yaml a job asks the server for a fork, which takes over the job's arguments, environment, working
directory and standard streams, and runs the job. Snakemake sets OMP_NUM_THREADS to a job's cores.

A job has the server of its own surroundings (`run.surroundings`): checkout, code, environment, limits. So the fork runs
as the job would have run alone. The server (`run.warm_server`) exits after a minute without jobs. A job is killed when
its client dies. Where there is no server, and none can be started, the job runs in its own process, after a line that
says why.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfdistill.run import surroundings

#: A job alone would load the same libraries, on a busy machine or a slow file system just as long.
_START_SECONDS = 600
#: How long to wait for a fork. A server that does not answer has been stopped.
_FORK_SECONDS = 10
READY = b"r"
LENGTH_BYTES = 4
#: Exit code of the job; the number of a signal that ended it, negative.
STATUS = struct.Struct("!h")
#: Passed on to the job, unless the client ignores them (then so does the job).
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class NoServer(Exception):
    """Why this job runs in its own process."""


def is_possible() -> bool:
    """On Linux, for jobs of one thread: OpenMP's threads do not survive a fork."""
    return surroundings.are_known() and os.environ.get("OMP_NUM_THREADS") == "1"


def run_forked(arguments: list[str], module: str) -> int | None:
    """Call `module.run(arguments)` in a fork of the server, as `python -m module` would in this process.

    Its exit code, as in `subprocess`: a signal that ended it is negative. None where there is no server.
    """
    try:
        connection = _connect(_address())
    except (NoServer, OSError) as error:
        print(f"warm start is not possible, this job starts alone: {error}", file=sys.stderr, flush=True)
        return None
    with connection:
        _request(connection, arguments, module)
        return _wait(connection)


def _request(connection: socket.socket, arguments: list[str], module: str) -> None:
    """Send the job, with the standard streams."""
    request = json.dumps(
        {"module": module, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    ).encode()
    descriptors = array.array("i", [0, 1, 2])
    connection.sendmsg(
        [len(request).to_bytes(LENGTH_BYTES, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
    )
    connection.sendall(request)


def _wait(connection: socket.socket) -> int:
    """Wait for the job, and pass on signals to it."""
    forwarded = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, lambda n, _: connection.send(bytes([n]))) for number in forwarded}
    try:
        status = connection.recv(STATUS.size, socket.MSG_WAITALL)
    except ConnectionError:
        status = b""
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    # Nothing: the job was killed together with its server.
    return STATUS.unpack(status)[0] if len(status) == STATUS.size else -signal.SIGKILL


def _address() -> Path:
    """Socket of the server for these surroundings. NoServer where its folder is not this user's alone."""
    folder = Path(tempfile.gettempdir()) / f"selfdistill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o700:
        raise NoServer(f"{folder} belongs to another user or is open to others.")
    return folder / f"{surroundings.digest()}.sock"


@contextmanager
def socket_name(address: Path) -> Iterator[str]:
    """A name for a socket that is short wherever its folder is: the system takes 107 characters."""
    folder = os.open(address.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{address.name}"
    finally:
        os.close(folder)


def _connect(address: Path) -> socket.socket:
    """A connection to a fork of the server, which is started if it is not running. NoServer where that fails."""
    connection = _try(address)
    if connection is not None:
        return connection
    with address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = _try(address)
        return connection if connection is not None else _start(address)


def _start(address: Path) -> socket.socket:
    log = address.with_suffix(".log")
    with log.open("w") as output:
        server = subprocess.Popen(
            _command(address), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        connection = _try(address)
        if connection is not None:
            return connection
        time.sleep(0.05)
    raise NoServer(f"its server did not start, see {log}")


def _command(address: Path) -> list[str]:
    return [sys.executable, "-m", "selfdistill.run.warm_server", str(address)]


def _try(address: Path) -> socket.socket | None:
    """A connection to a fresh fork; None where no server listens, NoServer where it does not answer."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_FORK_SECONDS)
    try:
        with socket_name(address) as name:
            connection.connect(name)
        if connection.recv(1) == READY:
            connection.settimeout(None)
            return connection
    except TimeoutError:
        connection.close()
        raise NoServer(f"the server of {address} does not answer. If it is stopped, end it.") from None
    except OSError:
        pass
    connection.close()
    return None
