"""A sampler that runs in other processes of this node: the client that each training process uses.

Every training process connects to every sampling process and spreads its prompts over them. A sampling process
(`generation.remote.server`) serves all training processes of the node in one batch; local rank 0 also sends weights.

Messages are pickled tuples over a Unix socket in a folder that only this user can enter. To the server: the local rank
(once), then ("sample", prompts, seeds, sampling), and from local rank 0 ("weights", folder). From the server:
("ready",), ("alive",), ("answer", place, completions), ("end",), ("loaded",), ("error", text).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Set
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any

from selfdistill.generation.base import Completion, OnProgress, Sampler, Weights
from selfdistill.generation.weights import write_weights
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import UserError

#: A server listens as soon as Python has started, long before its engine is ready.
_CONNECT_SECONDS = 120
_POLL_SECONDS = 0.1


class RemoteSampler(Sampler):
    """Samples in other processes. All training processes of a node make the same calls in the same order."""

    pulls = False

    def __init__(
        self,
        addresses: Sequence[Path],
        local_rank: int,
        *,
        log: Path,
        has_exited: Callable[[], bool] = lambda: False,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """`local_rank` is this training process's rank on the node; 0 sends weights and ends the servers.

        `log`: file with the servers' output. `has_exited`: whether a server has exited already.
        Raises RuntimeError where a server cannot be reached.
        """
        self.local_rank, self.log, self.on_close = local_rank, log, on_close
        self.folder = addresses[0].parent
        self.is_ready = False
        #: Messages of the current call that have not been received yet.
        self.messages: Iterator[tuple[Connection, tuple[Any, ...]]] = iter(())
        self.servers = [_connect(address, log, has_exited) for address in addresses]
        for server in self.servers:
            self._send(server, local_rank)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `generation.base.Sampler`. Servers finish a call that the caller abandons; its answers are discarded."""
        self._wait_until_ready()
        wanted = [index for index in range(len(prompts)) if index not in done]
        indices_of: dict[Connection, list[int]] = {server: [] for server in self.servers}
        for turn, index in enumerate(wanted, self.local_rank):
            indices_of[self.servers[turn % len(self.servers)]].append(index)
        for server, indices in indices_of.items():
            self._send(server, ("sample", [prompts[i] for i in indices], [seeds[i] for i in indices], sampling))
        self.messages = self._receive_until_end()
        for server, message in self.messages:
            place, completions = message[1:] if message[0] == "answer" else (None, [])
            if on_progress is not None:
                on_progress(len(completions), sum(len(completion.token_ids) for completion in completions))
            if place is not None:
                yield indices_of[server][place], completions

    def stream_portions(
        self,
        portions: Iterator[Sequence[int]],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `generation.base.Sampler`. One request for all portions, since servers wait for one of every process."""
        places = [place for portion in portions for place in portion if place not in done]
        chosen = [prompts[place] for place in places], [seeds[place] for place in places]
        for index, completions in self.stream(*chosen, sampling, on_progress=on_progress):
            yield places[index], completions

    def update_weights(self, weights: Weights) -> None:
        """See `generation.base.Sampler`: local rank 0 writes files in memory that the servers read.

        The other ranks iterate over the weights all the same, because gathering sharded weights is collective.
        """
        if self.local_rank:
            for _ in weights():
                pass
            return
        # In the servers' folder, which they remove if this process is killed.
        folder = self.folder / "weights"
        folder.mkdir()
        try:
            write_weights(weights(), folder)
            self.load_weights(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def load_weights(self, folder: Path) -> None:
        """See `generation.base.Sampler`; only for local rank 0."""
        if self.local_rank:
            raise RuntimeError("only local rank 0 of the training sends weights")
        self._wait_until_ready()
        for server in self.servers:
            self._send(server, ("weights", str(folder)))
        for server in self.servers:
            self._receive(server)

    def close(self) -> None:
        """Close the connections; the servers exit when local rank 0 does so."""
        for server in self.servers:
            server.close()
        self.on_close()

    def _receive_until_end(self) -> Iterator[tuple[Connection, tuple[Any, ...]]]:
        """(server, message) until every server has sent the end of the call."""
        running = list(self.servers)
        while running:
            for server in wait(running):
                message = self._receive(server)
                if message[0] == "end":
                    running.remove(server)
                else:
                    yield server, message

    def _wait_until_ready(self) -> None:
        """Wait until the engines have started and all messages of an earlier call have been received."""
        if not self.is_ready:
            for server in self.servers:
                self._receive(server)
            self.is_ready = True
        for _ in self.messages:
            pass

    def _send(self, server: Connection, message: Any) -> None:
        try:
            server.send(message)
        except OSError as error:
            raise self._exited() from error

    def _receive(self, server: Connection) -> tuple[Any, ...]:
        try:
            message = server.recv()
        except (EOFError, OSError) as error:
            raise self._exited() from error
        if message[0] == "error":
            raise UserError(message[1])
        return message

    def _exited(self) -> RuntimeError:
        return RuntimeError(f"a sampling process has exited; see the end of {self.log}")


def _connect(address: Path, log: Path, has_exited: Callable[[], bool]) -> Connection:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return Client(str(address), family="AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if has_exited() or time.monotonic() > deadline:
                raise RuntimeError(f"a sampling process did not start; see the end of {log}") from error
            time.sleep(_POLL_SECONDS)
