"""Who samples while a model is trained: its own processes in turn with training, or processes beside them."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from selfdistill.artifacts.tables import read_rows
from selfdistill.generation.base import Sampler
from selfdistill.generation.remote.client import RemoteSampler
from selfdistill.generation.remote.server import ServerSettings
from selfdistill.generation.weights import folder_in_memory
from selfdistill.run.gpus import VISIBLE, gpus_of, visible_gpus
from selfdistill.run.job import Job
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.stages.shared.models import eos_token_ids, model_folder
from selfdistill.training.distributed import World

#: Variables by which a launcher tells a process its place: a sampling process has none there.
_OF_A_LAUNCHER = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK",
    "GROUP_WORLD_SIZE", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_",
)  # fmt: skip
#: From hanging up to killing. A sampling process that hears of it by its pipe alone takes a few seconds.
_SECONDS_TO_END = 30


def make_training_sampler(job: Job, spec: TrainSpec, model: Any, tokenizer: Any) -> Sampler | None:
    """None where nothing is sampled.

    The torch sampler shares the trained model, unless that will be sharded; all others have a copy and are sent each
    update.
    """
    used = spec.on_policy or spec.evaluation
    if used is None:
        return None
    eos = sorted(eos_token_ids(model, tokenizer))
    longest = max_positions(job, spec)
    if job.runtime.separate_samplers:
        return _start_beside(job, used.engine, eos, longest)
    if used.engine == "vllm":
        from selfdistill.generation.vllm_sampler import VllmSampler

        return VllmSampler.load(
            model_folder(job.artifact.input("model")), job.runtime, is_colocated=True, max_positions=longest
        )
    from selfdistill.generation.torch_sampler import TorchSampler

    shares_model = job.runtime.sharding == "none"
    return TorchSampler(
        model if shares_model else copy.deepcopy(model),
        eos,
        max_batch_tokens=job.runtime.sampler_batch_tokens,
        shares_model=shares_model,
    )


def max_positions(job: Job, spec: TrainSpec) -> int:
    """The longest sequence that will be asked for, in training or in the evaluations between."""
    asked = {"prompts": spec.on_policy, "evaluation_prompts": spec.evaluation}
    return max(
        _longest_prompt(job, role) + settings.sampling.max_tokens for role, settings in asked.items() if settings
    )


def _longest_prompt(job: Job, role: str) -> int:
    rows = read_rows(job.artifact.input(role).payload / "prompts.parquet", ["prompt_ids"])
    return max((len(row["prompt_ids"]) for row in rows), default=0)


def _start_beside(job: Job, engine: str, eos_token_ids: list[int], longest: int) -> Sampler:
    """Sampling processes of this machine, started by the first of its training processes, and the line to them."""
    world = World(job.runtime.device)
    number = int(os.environ.get("LOCAL_RANK", "0")) if world.size > 1 else 0
    log = job.artifact.folder / "workers" / f"sampling-{world.rank - number}.log"
    # For sockets and weights. Not in the artifact, as a path to a socket has to be short.
    own = [str(folder_in_memory())] if number == 0 else [""]
    room = Path(world.gather(own, world.size)[world.rank - number])
    addresses = [room / str(index) for index in range(job.runtime.separate_samplers)]
    if number:
        return RemoteSampler(addresses, number, log=log)
    settings = [
        ServerSettings(
            address=address, clients=world.size_of_node, folder=model_folder(job.artifact.input("model")),
            engine=engine, eos_token_ids=eos_token_ids, max_positions=longest, runtime=job.runtime,
        )
        for address in addresses
    ]  # fmt: skip
    processes = _start(settings, job.runtime, world.size_of_node, log)
    return RemoteSampler(
        addresses,
        number,
        log=log,
        has_ended=lambda: any(process.poll() is not None for process in processes),
        when_closed=lambda: _end(processes, room),
    )


def _start(
    settings: list[ServerSettings], runtime: StageRuntime, training_processes: int, log: Path
) -> list[subprocess.Popen[bytes]]:
    """A process for each of the settings, the first of a group of its own: an engine may have more of them."""
    environments = [_environment(runtime, training_processes, index) for index in range(len(settings))]
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as words:
        return [
            subprocess.Popen(
                [sys.executable, "-m", "selfdistill.generation.remote.server", each.model_dump_json()],
                env=environment, stdin=subprocess.PIPE, stdout=words, stderr=words, start_new_session=True,
            )
            for each, environment in zip(settings, environments, strict=True)
        ]  # fmt: skip


def _end(processes: Sequence[subprocess.Popen[bytes]], room: Path) -> None:
    """Let them end, having been hung up on; what is left of them then is killed."""
    for process in processes:
        process.stdin.close()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(room, ignore_errors=True)


def _environment(runtime: StageRuntime, training_processes: int, index: int) -> dict[str, str]:
    """That of this process without its place among the training processes; GPUs are those after theirs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCHER)}
    kept["OMP_NUM_THREADS"] = str(runtime.threads)
    if runtime.device == "cuda":
        beside = visible_gpus()[training_processes:]
        kept[VISIBLE] = ",".join(gpus_of(index, runtime.tensor_parallel, beside))
    return kept
