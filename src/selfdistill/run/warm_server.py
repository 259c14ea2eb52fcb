"""The server of a warm start: `python -m selfdistill.run.warm_server SOCKET`. `run.warm` is its client.

It loads libraries only, never what a job runs of this package. It starts with the surroundings of the first client, and
exits at once if they are not those that its socket is named for.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from selfdistill.run import surroundings
from selfdistill.run.warm import LENGTH_BYTES, READY, STATUS, socket_name

IDLE_SECONDS = 60
LIBRARIES = (
    "numpy", "pyarrow.parquet", "pydantic", "yaml", "filelock", "tqdm", "torch", "safetensors.torch",
    "transformers.modeling_utils", "transformers.generation", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.tokenization_utils_tokenizers",
)  # fmt: skip


class Jobs:
    """The forks that are running, by a descriptor that becomes readable when the fork ends."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[int, socket.socket]] = {}

    def __bool__(self) -> bool:
        return bool(self._running)

    def add(self, pid: int, connection: socket.socket) -> None:
        self._running[os.pidfd_open(pid)] = pid, connection

    def wait(self, listener: socket.socket, seconds: float) -> bool:
        """Wait for a client (True) or an ended job, but not longer; tell the clients of ended jobs how they ended."""
        ready, _, _ = select.select([listener, *self._running], [], [], seconds)
        for descriptor in [found for found in ready if found is not listener]:
            pid, connection = self._running.pop(descriptor)
            os.close(descriptor)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(OSError), connection:
                connection.send(STATUS.pack(code))
        return listener in ready

    def forget(self) -> None:
        """In a fork: the other jobs are none of its business, and must not seem alive because of it."""
        for descriptor, (_, connection) in self._running.items():
            os.close(descriptor)
            connection.close()


def serve(address: Path) -> socket.socket | None:
    """Fork for every client until there was no job for a while; returns None then, and in a fork its connection."""
    address.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with socket_name(address) as name:
        listener.bind(name)
    listener.listen(64)
    own = address.stat().st_ino
    jobs, last = Jobs(), time.monotonic()
    while jobs or time.monotonic() - last < IDLE_SECONDS:
        if jobs:
            last = time.monotonic()
        if not jobs.wait(listener, 1.0):
            continue
        connection, _ = listener.accept()
        pid = os.fork()
        if pid == 0:
            listener.close()
            jobs.forget()
            return connection
        jobs.add(pid, connection)
    # Another server may have taken the place of a stopped one.
    if address.exists() and address.stat().st_ino == own:
        for suffix in (".sock", ".log", ".lock"):
            address.with_suffix(suffix).unlink(missing_ok=True)
    return None


def run_job(connection: socket.socket) -> int:
    """Run the client's job in this fork; its exit code."""
    connection.send(READY)
    header, descriptors, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 3)
    if len(header) < LENGTH_BYTES:
        return 0  # The client is gone: it did not wait for this fork.
    request = json.loads(_read(connection, int.from_bytes(header, "big")))
    os.setsid()
    _take_over(descriptors, request)
    threading.Thread(target=_forward_signals, args=(connection,), daemon=True).start()
    return importlib.import_module(request["module"]).run(request["arguments"])


def _take_over(descriptors: Sequence[int], request: dict) -> None:
    """Standard streams, folder, environment, arguments of the client; what a new interpreter would do anew."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    importlib.invalidate_caches()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def end_like_an_interpreter(run: Callable[[], int]) -> int:
    """The exit code of `run`, after what an interpreter does at its end.

    Except that it does not take down its objects, which costs two seconds of CPU with these libraries.
    """
    try:
        code = run()
    except SystemExit as leaving:
        code = leaving.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    return (code or 0) & 0xFF


def _forward_signals(connection: socket.socket) -> None:
    """Deliver the signals that the client forwards; kill this job when the client dies."""
    while True:
        try:
            received = connection.recv(1)
        except ConnectionError:
            received = b""
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


def _unsafe_threads() -> list[str]:
    """Names of the threads that a fork would lack and not start again; pyarrow's allocator starts its own again."""
    others = [path for path in Path("/proc/self/task").iterdir() if path.name != str(os.getpid())]
    names = [(path / "comm").read_text().strip() for path in others]
    return [name for name in names if name != "jemalloc_bg_thd"]


def main(address: Path) -> int:
    if surroundings.digest() != address.stem:
        print("this process cannot have the surroundings of its client", file=sys.stderr)
        return 1
    for name in LIBRARIES:
        importlib.import_module(name)
    if threads := _unsafe_threads():
        print(f"libraries have started threads, so forks are not safe: {', '.join(threads)}", file=sys.stderr)
        return 1
    server = os.getpid()
    connection = serve(address)
    if connection is not None:
        code = end_like_an_interpreter(lambda: run_job(connection))
        if os.getppid() != server:  # Otherwise the server sends it.
            connection.send(STATUS.pack(code))
        os._exit(code)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
