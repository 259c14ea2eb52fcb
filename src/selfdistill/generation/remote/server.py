"""A separate sampling process of a training, with its own GPUs. `generation.remote.client` is its counterpart.

    python -m selfdistill.generation.remote.server SETTINGS        (JSON, see `ServerSettings`)

It samples once all training processes of the node have sent a request, and exits when local rank 0 closes its
connection or dies. Its standard input is a pipe from local rank 0.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Literal

from selfdistill.generation.base import Sampler
from selfdistill.generation.loading import load_sampler
from selfdistill.parent import wait_for_parent
from selfdistill.schema.base import Model
from selfdistill.schema.errors import EXIT_USER_ERROR, UserError
from selfdistill.schema.runtime import StageRuntime

_ALIVE_SECONDS = 1.0
#: Seconds to exit before this process group is killed: after the regular end, and after the training was killed.
_GRACE_SECONDS, _GRACE_SECONDS_IF_KILLED = 10, 2


class ServerSettings(Model):
    """Settings of a sampling process. `clients`: training processes on this node."""

    address: Path
    clients: int
    folder: Path
    engine: Literal["torch", "vllm"]
    kv_cache_dtype: str = "auto"
    max_positions: int
    runtime: StageRuntime


class TrainingEnded(Exception):
    """Local rank 0 of the training has closed its connection."""


class Server:
    """A sampler, and the connections to the training processes of this node by local rank."""

    def __init__(self, sampler: Sampler, clients: Sequence[Connection]) -> None:
        self.sampler, self.clients = sampler, clients

    def run(self) -> None:
        """Serve until the training ends (TrainingEnded); RuntimeError where another rank than 0 disconnects."""
        self._broadcast("ready")
        while True:
            request = self._receive(0)
            if request[0] == "weights":
                self.sampler.load_weights(Path(request[1]))
                self._send(0, "loaded")
            else:
                self._sample([request, *(self._receive(rank) for rank in range(1, len(self.clients)))])

    def _sample(self, requests: Sequence[tuple[Any, ...]]) -> None:
        """Sample the requests of all training processes in one batch; send each its completions as they finish."""
        sampling = requests[0][3]
        prompts, seeds, owners = [], [], []
        for rank, (_, rank_prompts, rank_seeds, _) in enumerate(requests):
            prompts += rank_prompts
            seeds += rank_seeds
            owners += [(rank, place) for place in range(len(rank_prompts))]
        sent = time.monotonic()

        def on_progress(*_: int) -> None:
            nonlocal sent
            if time.monotonic() - sent > _ALIVE_SECONDS:
                sent = time.monotonic()
                self._broadcast("alive")

        for index, completions in self.sampler.stream(prompts, seeds, sampling, on_progress=on_progress):
            rank, place = owners[index]
            self._send(rank, "answer", place, completions)
        self._broadcast("end")

    def _broadcast(self, *message: Any) -> None:
        for rank in range(len(self.clients)):
            self._send(rank, *message)

    def _send(self, rank: int, *message: Any) -> None:
        with _disconnection_of(rank):
            self.clients[rank].send(message)

    def _receive(self, rank: int) -> tuple[Any, ...]:
        with _disconnection_of(rank):
            return self.clients[rank].recv()


@contextmanager
def _disconnection_of(rank: int) -> Iterator[None]:
    """Local rank 0 ends the training (TrainingEnded); any other rank has failed, and its own log says why."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        if rank:
            raise RuntimeError(f"local rank {rank} of the training has closed its connection") from error
        raise TrainingEnded from error


def accept(listener: Listener, count: int) -> list[Connection]:
    """Connections of all training processes, by local rank."""
    found: dict[int, Connection] = {}
    while len(found) < count:
        client = listener.accept()
        found[client.recv()] = client
    return [found[rank] for rank in range(count)]


def exit_with_parent(folder: Path) -> None:
    """Wait until the parent process exits or dies; then kill this process and its children, after a grace period.

    The connections would show it, too, but not while an engine starts or reads weights.
    """
    time.sleep(_GRACE_SECONDS if wait_for_parent() else _GRACE_SECONDS_IF_KILLED)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def main(settings: ServerSettings) -> int:
    """Serve until the training ends. A user's mistake is sent to the training processes, which raise it."""
    # Schedulers and terminals signal every process of a job, but only the training decides when to exit. The signals
    # are blocked rather than ignored, because vLLM's processes inherit a mask and do not undo it. Python's tracker of
    # shared memory resets the mask when it starts, so it is started first.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    folder = settings.address.parent
    threading.Thread(target=exit_with_parent, args=(folder,), daemon=True).start()
    with Listener(str(settings.address), family="AF_UNIX") as listener:
        clients = accept(listener, settings.clients)
    # A child that kept a connection open would hide the exit of this process from the training.
    os.register_at_fork(after_in_child=lambda: [client.close() for client in clients])
    try:
        sampler = load_sampler(
            settings.folder,
            settings.engine,
            settings.runtime,
            max_positions=settings.max_positions,
            kv_cache_dtype=settings.kv_cache_dtype,
        )
        with closing(sampler):
            Server(sampler, clients).run()
    except TrainingEnded:
        return 0
    except UserError as error:
        for client in clients:
            client.send(("error", str(error)))
        return EXIT_USER_ERROR
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(ServerSettings.model_validate_json(sys.argv[1])))
