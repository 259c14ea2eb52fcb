"""A sampling process beside the training processes of a machine, on GPUs of its own: `generation.remote` talks to it.

    python -m selfdistill.generation.remote.server SETTINGS        (JSON, see `ServerSettings`)

It answers when all training processes have asked, and ends when the first of them hangs up, however that one ends.
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
from selfdistill.schema.base import Model
from selfdistill.schema.errors import EXIT_USER_ERROR, UserError
from selfdistill.schema.runtime import StageRuntime

_ALIVE_SECONDS = 1.0
#: From the end of the training to the end of this process, where it does not notice by itself.
_SECONDS_TO_END = 10


class ServerSettings(Model):
    """What a sampling process is started with."""

    address: Path
    clients: int
    folder: Path
    engine: Literal["torch", "vllm"]
    eos_token_ids: list[int]
    max_positions: int
    runtime: StageRuntime


class TrainingEnded(Exception):
    """The first training process has hung up: there is nothing more to do."""


class Server:
    """One engine and the connections of all training processes of this machine, the first of them first."""

    def __init__(self, sampler: Sampler, clients: Sequence[Connection]) -> None:
        self.sampler, self.clients = sampler, clients

    def run(self) -> None:
        """Answer until the training ends (TrainingEnded); RuntimeError where another process but the first hangs up."""
        self._tell_all("ready")
        while True:
            request = self._hear(0)
            if request[0] == "weights":
                self.sampler.load_weights(Path(request[1]))
                self._tell(0, "loaded")
            else:
                self._sample([request, *(self._hear(number) for number in range(1, len(self.clients)))])

    def _sample(self, requests: Sequence[tuple[Any, ...]]) -> None:
        """One batch of what all training processes ask for; each gets its answers as they are ready."""
        sampling = requests[0][3]
        prompts, seeds, owners = [], [], []
        for number, (_, own_prompts, own_seeds, _) in enumerate(requests):
            prompts += own_prompts
            seeds += own_seeds
            owners += [(number, place) for place in range(len(own_prompts))]
        told = time.monotonic()

        def on_progress(*_: int) -> None:
            nonlocal told
            if time.monotonic() - told > _ALIVE_SECONDS:
                told = time.monotonic()
                self._tell_all("alive")

        for index, completions in self.sampler.stream(prompts, seeds, sampling, on_progress=on_progress):
            number, place = owners[index]
            self._tell(number, "answer", place, completions)
        self._tell_all("end")

    def _tell_all(self, *message: Any) -> None:
        for number in range(len(self.clients)):
            self._tell(number, *message)

    def _tell(self, number: int, *message: Any) -> None:
        with _noticing_the_end_of(number):
            self.clients[number].send(message)

    def _hear(self, number: int) -> tuple[Any, ...]:
        with _noticing_the_end_of(number):
            return self.clients[number].recv()


@contextmanager
def _noticing_the_end_of(number: int) -> Iterator[None]:
    """A training ends with its first process; where another one is gone, its own log says why."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        if number:
            raise RuntimeError(f"training process {number} of this machine has hung up") from error
        raise TrainingEnded from error


def make_sampler(settings: ServerSettings) -> Sampler:
    """The engine over the model folder, alone on its device."""
    if settings.engine == "vllm":
        from selfdistill.generation.vllm_sampler import VllmSampler

        return VllmSampler.load(settings.folder, settings.runtime, max_positions=settings.max_positions)
    import torch
    from transformers import AutoModelForCausalLM

    from selfdistill.generation.torch_sampler import TorchSampler

    torch.set_num_threads(settings.runtime.threads)
    model = AutoModelForCausalLM.from_pretrained(settings.folder, dtype=torch.float32).eval()
    return TorchSampler(
        model.to(settings.runtime.device),
        settings.eos_token_ids,
        max_batch_tokens=settings.runtime.sampler_batch_tokens,
        shares_model=False,
    )


def accept(listener: Listener, count: int) -> list[Connection]:
    """The connections of all training processes, in the order of their numbers."""
    found: dict[int, Connection] = {}
    while len(found) < count:
        client = listener.accept()
        found[client.recv()] = client
    return [found[number] for number in range(count)]


def end_with_parent(room: Path) -> None:
    """Wait for the end of the process that started this one, however that ends; then end too, with all children.

    A connection would show it, but not while an engine starts or reads weights.
    """
    os.read(sys.stdin.fileno(), 1)
    time.sleep(_SECONDS_TO_END)
    shutil.rmtree(room, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def main(settings: ServerSettings) -> int:
    """Serve until the training ends. A user's mistake is told to the training processes, which end with it."""
    # A scheduler signals every process of a job, a terminal too: when to leave is the training's decision. Blocked and
    # not ignored: vLLM's processes inherit it, and do not undo it. Python's own tracker of shared memory would, when it
    # starts; so it is started before.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    room = settings.address.parent
    threading.Thread(target=end_with_parent, args=(room,), daemon=True).start()
    with Listener(str(settings.address), family="AF_UNIX") as listener:
        clients = accept(listener, settings.clients)
    # A child that kept a connection open would hide the end of this process.
    os.register_at_fork(after_in_child=lambda: [client.close() for client in clients])
    try:
        with closing(make_sampler(settings)) as sampler:
            Server(sampler, clients).run()
    except TrainingEnded:
        return 0
    except UserError as error:
        for client in clients:
            client.send(("error", str(error)))
        return EXIT_USER_ERROR
    finally:
        shutil.rmtree(room, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(ServerSettings.model_validate_json(sys.argv[1])))
