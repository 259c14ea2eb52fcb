"""Warm start of many short jobs on one machine: a server process loads the heavy libraries, and jobs are its forks.

Loading torch and transformers takes seconds; the toy study has more than a hundred jobs. With `warm_start: true` in
config/runtime.yaml a job asks the server for a fork, which takes over the job's arguments, environment, working
directory and standard streams, and runs the job.

The server loads libraries only, never modules of this package, so edited source files are always read. It exits after
a minute without jobs. A job is killed when its client dies. Where the server cannot be started a job runs in its own
process.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import importlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

IDLE_SECONDS = 60
START_SECONDS = 90
_LIBRARIES = (
    "numpy", "pyarrow.parquet", "pydantic", "yaml", "filelock", "tqdm", "torch", "safetensors.torch",
    "transformers.modeling_utils", "transformers.generation", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.tokenization_utils_tokenizers",
)  # fmt: skip
_LENGTH_BYTES = 4


def is_possible() -> bool:
    return hasattr(os, "fork")


def run_forked(arguments: list[str], module: str) -> int | None:
    """Call `module.run(arguments)` in a fork of the server; its exit code, or None where there is no server."""
    connection = _connect(module)
    if connection is None:
        return None
    with connection:
        request = json.dumps({"arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ)}).encode()
        descriptors = array.array("i", [0, 1, 2])
        connection.sendmsg(
            [len(request).to_bytes(_LENGTH_BYTES, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        )
        connection.sendall(request)
        previous = {s: signal.signal(s, lambda number, _: connection.send(bytes([number]))) for s in _FORWARDED}
        try:
            answer = connection.recv(1)
        except ConnectionError:
            answer = b""
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    # No answer: the job was killed, for instance by the kernel for lack of memory.
    return answer[0] if answer else 128 + signal.SIGKILL


_FORWARDED = (signal.SIGTERM, signal.SIGINT)


def _address() -> Path:
    """Socket of the server for this interpreter, this copy of the package, the installed packages and this user."""
    folder = Path(tempfile.gettempdir()) / f"selfdistill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o700:
        raise PermissionError(f"{folder} belongs to another user or is open to others")
    packages = Path(os.path.dirname(os.__file__), "site-packages")
    installed = [str(p) + str(p.stat().st_mtime_ns) for p in map(Path, sys.path) if p.name == packages.name]
    known = hashlib.sha256("\n".join([sys.executable, __file__, *installed]).encode()).hexdigest()[:16]
    return folder / f"{known}.sock"


def _connect(module: str) -> socket.socket | None:
    """A connection to the server, which is started if it is not running."""
    try:
        address = _address()
    except OSError:
        return None
    with address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = _try(address)
        if connection is not None:
            return connection
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(
            [sys.executable, "-m", "selfdistill.run.warm", str(address), module],
            env=environment, start_new_session=True, close_fds=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while server.poll() is None and time.monotonic() < deadline:
            connection = _try(address)
            if connection is not None:
                return connection
            time.sleep(0.05)
    return None


def _try(address: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        return None
    return connection


def serve(address: Path, run: Callable[[list[str]], int]) -> None:
    """Load the libraries, then fork a job for every connection; return after a while without jobs."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    address.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(64)
    jobs: set[int] = set()
    last = time.monotonic()
    while jobs or time.monotonic() - last < IDLE_SECONDS:
        ready, _, _ = select.select([listener], [], [], 1.0)
        jobs -= {job for job in jobs if os.waitpid(job, os.WNOHANG)[0]}
        if jobs:
            last = time.monotonic()
        if not ready:
            continue
        connection, _ = listener.accept()
        last = time.monotonic()
        job = os.fork()
        if job == 0:
            listener.close()
            _run_job(connection, run)
        jobs.add(job)
        connection.close()
    address.unlink(missing_ok=True)


def _run_job(connection: socket.socket, run: Callable[[list[str]], int]) -> None:
    """Run the client's job in this fork. Never returns."""
    code = 1
    try:
        header, descriptors, _, _ = socket.recv_fds(connection, _LENGTH_BYTES, 3)
        request = json.loads(_read(connection, int.from_bytes(header, "big")))
        os.setsid()
        # The server may have been started where Ctrl-C is ignored; the job must receive forwarded signals.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        threading.Thread(target=_forward_signals, args=(connection,), daemon=True).start()
        code = run(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([code]))
        os._exit(code)


def _forward_signals(connection: socket.socket) -> None:
    """Deliver the signals that the client forwards; kill this job when the client dies."""
    while True:
        received = connection.recv(1)
        os.kill(os.getpid(), received[0] if received else signal.SIGKILL)


def _read(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = connection.recv(min(length, 1 << 16))
        if not part:
            raise ConnectionError("the client closed the connection")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    # The module whose `run` a job calls is imported in the fork, never here.
    serve(Path(sys.argv[1]), lambda arguments: importlib.import_module(sys.argv[2]).run(arguments))
