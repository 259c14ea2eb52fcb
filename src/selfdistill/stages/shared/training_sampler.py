"""The sampler of a training: in its own processes, in turns with training, or in processes of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from selfdistill.artifacts.tables import read_rows
from selfdistill.generation import Sampler
from selfdistill.generation.loading import load_sampler
from selfdistill.generation.remote.client import RemoteSampler
from selfdistill.generation.remote.processes import start_servers, stop_servers, without_launcher_variables
from selfdistill.generation.remote.server import ServerSettings
from selfdistill.generation.weights import folder_in_memory
from selfdistill.run.gpus import VISIBLE, gpus_of, visible_gpus
from selfdistill.run.job import Job
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.schema.training import OnPolicy, TrainingEvaluation
from selfdistill.stages.shared.models import model_folder
from selfdistill.training.distributed import World


def make_training_sampler(job: Job, spec: TrainSpec, model: Any) -> Sampler | None:
    """The sampler of this process, or None where nothing is sampled. `model` is the one that will be trained."""
    used = spec.on_policy or spec.evaluation
    if used is None:
        return None
    folder = model_folder(job.artifact.input("model"))
    longest = _max_positions(job, spec)
    if job.runtime.separate_samplers:
        return _connect_to_separate_samplers(job, folder, used, longest)
    return load_sampler(
        folder,
        used.engine,
        job.runtime,
        max_positions=longest,
        trained_model=model,
        kv_cache_dtype=used.kv_cache_dtype,
    )


def _max_positions(job: Job, spec: TrainSpec) -> int:
    """The longest sequence that will be asked for, in training or in the evaluations during it."""
    sampled = {"prompts": spec.on_policy, "evaluation_prompts": spec.evaluation}
    return max(
        _longest_prompt(job, role) + settings.sampling.max_tokens for role, settings in sampled.items() if settings
    )


def _longest_prompt(job: Job, role: str) -> int:
    rows = read_rows(job.artifact.input(role).payload / "prompts.parquet", ["prompt_ids"])
    return max((len(row["prompt_ids"]) for row in rows), default=0)


def _connect_to_separate_samplers(
    job: Job, folder: Path, used: OnPolicy | TrainingEvaluation, max_positions: int
) -> Sampler:
    """Connect to the sampling processes of this node; local rank 0 starts them."""
    world = World(job.runtime.device)
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if world.size > 1 else 0
    leader = world.rank - local_rank
    log = job.artifact.folder / "workers" / f"sampling-{leader}.log"
    # For sockets and weights. Not in the artifact's folder, because the path of a socket has to be short.
    created = "" if local_rank else str(folder_in_memory())
    exchange = Path(world.gather({world.rank: created})[leader])
    addresses = [exchange / str(index) for index in range(job.runtime.separate_samplers)]
    if local_rank:
        return RemoteSampler(addresses, local_rank, log=log)
    settings = [
        ServerSettings(
            address=address, clients=world.local_size, folder=folder, engine=used.engine,
            kv_cache_dtype=used.kv_cache_dtype, max_positions=max_positions, runtime=job.runtime,
        )
        for address in addresses
    ]  # fmt: skip
    environments = [_environment(job.runtime, world.local_size, index) for index in range(len(addresses))]
    processes = start_servers(settings, environments, log, kept_open=() if job.lock is None else (job.lock,))
    return RemoteSampler(
        addresses,
        local_rank,
        log=log,
        has_exited=lambda: any(process.poll() is not None for process in processes),
        on_close=lambda: stop_servers(processes, exchange),
    )


def _environment(runtime: StageRuntime, training_processes: int, index: int) -> dict[str, str]:
    """Environment of sampling process `index`: no rank, and the GPUs after those of the training processes."""
    environment = without_launcher_variables(os.environ) | {"OMP_NUM_THREADS": str(runtime.threads)}
    if runtime.device == "cuda":
        remaining = visible_gpus()[training_processes:]
        environment[VISIBLE] = ",".join(gpus_of(index, runtime.tensor_parallel, remaining))
    return environment
