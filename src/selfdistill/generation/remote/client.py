"""A sampler in another process of this machine, or several: what a training process says to them.

Every training process is connected with every sampling process, and spreads its prompts over them. A sampling process
(`generation.server`) answers the training processes together, so that their prompts share its batches; the first of
them on the machine also sends the weights.

Messages are pickled tuples over a Unix socket in a folder that only this user can enter. To the server: the training
process's number (once), then ("sample", prompts, seeds, sampling), and from the first ("weights", folder). From the
server: ("ready",), ("alive",), ("answer", place, completions), ("end",), ("loaded",), ("error", text).
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

#: A server listens as soon as Python has started, long before its engine is there.
_CONNECT_SECONDS = 120
_POLL_SECONDS = 0.1


class RemoteSampler(Sampler):
    """Samples in other processes. Every training process of the machine makes the same calls in the same order."""

    def __init__(
        self,
        addresses: Sequence[Path],
        number: int,
        *,
        log: Path,
        has_ended: Callable[[], bool] = lambda: False,
        when_closed: Callable[[], None] = lambda: None,
    ) -> None:
        """`number` counts the training processes of this machine; 0 is the one that sends weights and ends the servers.

        `log`: where a server's last words can be read. `has_ended`: whether a server has ended already.
        Raises RuntimeError where a server does not answer.
        """
        self.number, self.log, self.when_closed = number, log, when_closed
        self.room = addresses[0].parent
        self.is_ready = False
        #: What is still to be heard of the present call.
        self.answers: Iterator[tuple[Connection, tuple[Any, ...]]] = iter(())
        self.servers = [_connect(address, log, has_ended) for address in addresses]
        for server in self.servers:
            self._send(server, number)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        done: Set[int] = frozenset(),
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `generation.base.Sampler`. Servers finish a call that is given up; its answers are dropped."""
        self._wait_until_ready()
        wanted = [index for index in range(len(prompts)) if index not in done]
        shares: dict[Connection, list[int]] = {server: [] for server in self.servers}
        for turn, index in enumerate(wanted, self.number):
            shares[self.servers[turn % len(self.servers)]].append(index)
        for server, share in shares.items():
            self._send(server, ("sample", [prompts[i] for i in share], [seeds[i] for i in share], sampling))
        self.answers = self._until_all_end()
        for server, message in self.answers:
            place, completions = message[1:] if message[0] == "answer" else (None, [])
            if on_progress is not None:
                on_progress(len(completions), sum(len(completion.token_ids) for completion in completions))
            if place is not None:
                yield shares[server][place], completions

    def update_weights(self, weights: Weights) -> None:
        """See `generation.base.Sampler`: the first process writes files in memory that the servers read.

        The others go through the weights all the same, which may be sharded over all of them.
        """
        if self.number:
            for _ in weights():
                pass
            return
        # In the servers' own folder: they remove it should this process be killed.
        folder = self.room / "weights"
        folder.mkdir()
        try:
            write_weights(weights(), folder)
            self.load_weights(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def load_weights(self, folder: Path) -> None:
        """See `generation.base.Sampler`; for the first process alone."""
        if self.number:
            raise RuntimeError("only the first training process of a machine sends weights")
        self._wait_until_ready()
        for server in self.servers:
            self._send(server, ("weights", str(folder)))
        for server in self.servers:
            self._receive(server)

    def close(self) -> None:
        """Hang up; the first process's leaving ends the servers."""
        for server in self.servers:
            server.close()
        self.when_closed()

    def _until_all_end(self) -> Iterator[tuple[Connection, tuple[Any, ...]]]:
        """(server, message), until each has said that the call is at its end."""
        running = list(self.servers)
        while running:
            for server in wait(running):
                message = self._receive(server)
                if message[0] == "end":
                    running.remove(server)
                else:
                    yield server, message

    def _wait_until_ready(self) -> None:
        """Until the engines have started, and until nothing of an earlier call is left to be heard."""
        if not self.is_ready:
            for server in self.servers:
                self._receive(server)
            self.is_ready = True
        for _ in self.answers:
            pass

    def _send(self, server: Connection, message: Any) -> None:
        try:
            server.send(message)
        except OSError as error:
            raise self._gone() from error

    def _receive(self, server: Connection) -> tuple[Any, ...]:
        try:
            message = server.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if message[0] == "error":
            raise UserError(message[1])
        return message

    def _gone(self) -> RuntimeError:
        return RuntimeError(f"a sampling process has ended; its last words are in {self.log}")


def _connect(address: Path, log: Path, has_ended: Callable[[], bool]) -> Connection:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return Client(str(address), family="AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if has_ended() or time.monotonic() > deadline:
                raise RuntimeError(f"a sampling process did not start; see {log}") from error
            time.sleep(_POLL_SECONDS)
