"""Starting a vLLM engine over a model folder: on one GPU, on several, or with its CPU build.

With one GPU (or the CPU) the engine runs in this process, so new weights reach it without files. In a training of
several processes each runs an engine on its own GPU, or `tensor_parallel` consecutive ones run one together: each has
a part of its weights, and all schedule the same requests in the same order. Checked against vLLM 0.32.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime

#: KV cache of the CPU build, in GiB.
_CPU_CACHE_GIB = "2"
#: Prompt tokens of one step of the CPU build.
_CPU_BATCH_TOKENS = 4096
_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
#: The CPU build refuses to start when less than this share of the memory is free; its cache has a fixed size anyway.
_CPU_MEMORY_FRACTION = 0.1


def start_engine(
    folder: Path, runtime: StageRuntime, *, sleeps: bool, max_positions: int | None, kv_cache_dtype: str = "auto"
) -> Any:
    """A vLLM engine in eager float32 on a CPU, in the folder's precision on GPUs.

    `max_positions`: the longest sequence that will be asked for; the KV cache need not be larger. Raises UserError
    where vLLM is not installed, and for a model or a `kv_cache_dtype` that the CPU build cannot run.
    """
    is_parallel = _is_parallel()
    if kv_cache_dtype != "auto" and runtime.device == "cpu":
        raise UserError(f"kv_cache_dtype: {kv_cache_dtype} needs GPUs; on a CPU leave it at auto.")
    _set_environment(runtime)
    try:
        from accelerate import PartialState
        from transformers import AutoConfig
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"engine: vllm cannot be imported ({error}). Install the lock file that holds it, or use engine: torch."
        ) from error
    # It warns after every weight update that rotary embeddings, which have no weights, were not loaded.
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
    if is_parallel:
        # vLLM joins an existing process group, and would otherwise create one of its own size.
        PartialState(cpu=runtime.device == "cpu")
        if runtime.device == "cpu":
            _name_shared_memory()
    config = AutoConfig.from_pretrained(folder)
    length = _model_length(config, max_positions)
    options = _gpu_options(runtime) if runtime.device == "cuda" else _cpu_options(length)
    with _signals_held(), _launcher_variables_kept(), _library_classes_kept(config) as give_own_classes:
        engine = LLM(
            model=str(folder),
            seed=0,
            tensor_parallel_size=runtime.tensor_parallel,
            distributed_executor_backend="external_launcher" if is_parallel else None,
            max_model_len=length,
            kv_cache_dtype=kv_cache_dtype,
            enable_prefix_caching=True,
            enable_sleep_mode=sleeps,
            logprobs_mode="processed_logprobs",
            **options,
        )
        if is_in_process(engine):
            engine.apply_model(give_own_classes)
    if runtime.device == "cpu":
        _check_head_size(engine, folder)
    return engine


def stop_engine(engine: Any) -> None:
    """Free the memory of an engine in this process, so that another one can be started.

    The process group is left alone where several processes train, because it is theirs.
    """
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.llm_engine.engine_core.shutdown()
    if not _is_parallel():
        cleanup_dist_env_and_memory()


def is_in_process(engine: Any) -> bool:
    """Whether the engine, or this process's part of it, runs in this process and takes tensors directly."""
    backend = engine.llm_engine.vllm_config.parallel_config.distributed_executor_backend
    return backend in ("uni", "external_launcher") and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"


def ranks_of_engine(runtime: StageRuntime) -> int:
    """Training processes that run one engine together; 1 where each process starts its own."""
    return runtime.tensor_parallel if _is_parallel() else 1


def _is_parallel() -> bool:
    """Whether a launcher started several processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _name_shared_memory() -> None:
    """Name the shared memory of this job's engine after the job.

    The CPU build gives it one name for all jobs that a launcher started: a second job on the machine, or one after a
    job that was killed, could not start ("create shm in SHMManager failed").
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed as SharedMemory

    name_of = SharedMemory.make_group_name
    job = f"{os.environ.get('MASTER_PORT', '')}-{os.environ.get('TORCHELASTIC_RUN_ID', '')}"
    SharedMemory.make_group_name = staticmethod(lambda group: f"{job}{name_of(group)}".replace("/", ""))


def _set_environment(runtime: StageRuntime) -> None:
    """Variables that vLLM reads when it is imported or started; values set by the user take precedence."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if runtime.tensor_parallel == 1:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if runtime.device == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)


def _gpu_options(runtime: StageRuntime) -> dict[str, Any]:
    return {"dtype": "auto", "gpu_memory_utilization": runtime.gpu_memory_fraction, **runtime.engine_options}


def _cpu_options(length: int | None) -> dict[str, Any]:
    """Float32 and no compilation. Prefills are not split: vLLM 0.32 then resets the offset of the request's random
    generator, which CPU generators do not have, and fails."""
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "gpu_memory_utilization": _CPU_MEMORY_FRACTION,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_CPU_BATCH_TOKENS, length or 0),
    }


def _model_length(config: Any, max_positions: int | None) -> int | None:
    """The smaller of the requested and the model's own maximum length; None where neither is known."""
    lengths = [max_positions, getattr(config.get_text_config(), "max_position_embeddings", None)]
    return min((length for length in lengths if length is not None), default=None)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Keep stop signals from the engine's processes, if it has any: schedulers signal every process of a job.

    This process decides when to exit. Signals are blocked rather than ignored, because children inherit a mask and
    vLLM's do not undo it. Python's tracker of shared memory resets the mask when it starts, so it is started first.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _launcher_variables_kept() -> Iterator[None]:
    """The CPU build overwrites the launcher's number of processes, which the trainer reads."""
    before = {name: os.environ[name] for name in _LAUNCHER_VARIABLES if name in os.environ}
    yield
    os.environ.update(before)


@contextmanager
def _library_classes_kept(config: Any) -> Iterator[Callable[[Any], None]]:
    """Undo the changes that vLLM makes to a class of the transformers library while an engine starts.

    For architectures that vLLM does not implement (Olmo-3) it runs the library's class and changes it in place, so a
    model of that class in training could not be called any more. Yields a function that gives the engine's network a
    class of its own with these changes.
    """
    from transformers import AutoModel

    library = AutoModel._model_mapping[type(config)]
    bases, members = library.__bases__, dict(vars(library))

    def changed() -> dict[str, Any]:
        return {name: member for name, member in vars(library).items() if members.get(name) is not member}

    def give_own_classes(network: Any) -> None:
        added = tuple(base for base in library.__bases__ if base not in bases)
        if not added:
            return
        own = type(library.__name__, (library, *added), changed() | {"__module__": library.__module__})
        for module in [module for module in network.modules() if type(module) is library]:
            module.__class__ = own

    try:
        yield give_own_classes
    finally:
        if library.__bases__ != bases:
            for name in changed():
                if name in members:
                    setattr(library, name, members[name])
                else:
                    delattr(library, name)
            library.__bases__ = bases


def _check_head_size(engine: Any, folder: Path) -> None:
    """The CPU build starts with any size of attention heads, but fails in the first batch with an unsupported one."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size, known = engine.model_config.get_head_size(), CPUAttentionBackend.get_supported_head_sizes()
    if size not in known:
        raise UserError(
            f"{folder}: vLLM's CPU build cannot run attention heads of size {size} (it supports "
            f"{', '.join(map(str, known))}). Use engine: torch for this model."
        )
