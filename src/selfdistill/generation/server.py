"""A sampling process beside the training processes of a machine, on GPUs of its own: `generation.remote` talks to it.

    python -m selfdistill.generation.server SETTINGS        (JSON, see `ServerSettings`)

It answers when all training processes have asked, and ends when the first of them hangs up, however that one ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
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


class Server:
    """One engine and the connections of all training processes of this machine, the first of them first."""

    def __init__(self, sampler: Sampler, clients: Sequence[Connection]) -> None:
        self.sampler, self.clients = sampler, clients

    def run(self) -> None:
        """Answer until the first training process hangs up (EOFError or ConnectionError)."""
        self._tell_all("ready")
        while True:
            request = self.clients[0].recv()
            if request[0] == "weights":
                self.sampler.load_weights(Path(request[1]))
                self.clients[0].send(("loaded",))
            else:
                self._sample([request, *(client.recv() for client in self.clients[1:])])

    def _sample(self, requests: Sequence[tuple[Any, ...]]) -> None:
        """One batch of what all training processes ask for; each gets its answers as they are ready."""
        sampling = requests[0][3]
        prompts, seeds, owners = [], [], []
        for client, (_, own_prompts, own_seeds, _) in zip(self.clients, requests, strict=True):
            prompts += own_prompts
            seeds += own_seeds
            owners += [(client, place) for place in range(len(own_prompts))]
        told = time.monotonic()

        def on_progress(*_: int) -> None:
            nonlocal told
            if time.monotonic() - told > _ALIVE_SECONDS:
                told = time.monotonic()
                self._tell_all("alive")

        for index, completions in self.sampler.stream(prompts, seeds, sampling, on_progress=on_progress):
            client, place = owners[index]
            client.send(("answer", place, completions))
        self._tell_all("end")

    def _tell_all(self, *message: Any) -> None:
        for client in self.clients:
            client.send(message)


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


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """Remove the folder of the addresses where this was the last one in it."""
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def end_with_parent() -> None:
    """The pipe to the process that started this one is closed when that ends, however it ends.

    A connection would show it too, but not while they are awaited, nor in the middle of an engine's start.
    """
    sys.stdin.buffer.read()
    time.sleep(_SECONDS_TO_END)
    os._exit(1)


def main(settings: ServerSettings) -> int:
    """Serve until the training ends. A user's mistake is told to the training processes, which end with it."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    # A scheduler signals every process of a job, a terminal too: when to leave is the training's decision.
    for ignored in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    with _emptied(settings.address.parent), Listener(str(settings.address), family="AF_UNIX") as listener:
        clients = accept(listener, settings.clients)
        try:
            with closing(make_sampler(settings)) as sampler:
                Server(sampler, clients).run()
        except (EOFError, ConnectionError):
            return 0
        except UserError as error:
            for client in clients:
                client.send(("error", str(error)))
            return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main(ServerSettings.model_validate_json(sys.argv[1])))
