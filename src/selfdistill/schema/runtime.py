"""How things run on this machine: config/runtime.yaml. Nothing here ever enters an identity."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from selfdistill.schema.base import Model

#: Options of vLLM's engine that the project sets itself, or that decide what is sampled.
_NOT_RUNTIME = {
    "calculate_kv_scales", "distributed_executor_backend", "dtype", "enable_prefix_caching", "enable_sleep_mode",
    "gpu_memory_utilization", "hf_overrides", "kv_cache_dtype", "load_format", "logits_processors", "logprobs_mode",
    "max_logprobs", "max_model_len", "model", "quantization", "rope_scaling", "seed", "speculative_config",
    "tensor_parallel_size", "tokenizer", "trust_remote_code",
}  # fmt: skip


#: Of weights, gradients and optimiser, over training processes.
Sharding = Literal["none", "full", "hybrid"]


class StageRuntime(Model):
    """Settings of a job that change speed and memory, never results (beyond float rounding)."""

    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Where tensors are; a missing GPU is an error before anything loads."
    )
    processes: int = Field(1, gt=0, description="Training processes on each node; more than one starts a launcher.")
    sharding: Sharding = Field(
        "none",
        description="full: weights, gradients and optimiser are spread over all training processes (FSDP2). hybrid: "
        "over those of each node, and each node has a copy (HSDP).",
    )
    accelerate_config: str | None = Field(
        None, description="Start the processes of one machine by `accelerate launch` with this file, not by torchrun."
    )
    threads: int = Field(1, gt=0, description="CPU threads of a process.")
    micro_batch_tokens: int = Field(16384, gt=0, description="Token budget of one forward and backward pass.")
    share_prompts: bool = Field(
        True,
        description="Read a long prompt of the teacher once for the rows that have it; its keys and values take memory "
        "while these train (`selfdistill estimate` shows it).",
    )
    compile: bool | None = Field(
        None,
        description="Compile the losses and layers of a training (torch.compile); if left out, on GPUs. Where the "
        "compiler does not work the training goes on without it.",
    )
    sampler_batch_tokens: int = Field(
        262144, gt=0, description="Token budget (prompt and completion) of the torch sampler's batch."
    )
    gpu_memory_fraction: float = Field(0.85, gt=0, lt=1, description="Share of a GPU's memory that vLLM may take.")
    tensor_parallel: int = Field(
        1,
        gt=0,
        description="GPUs that share one vLLM engine; of several training processes, as many as run one together.",
    )
    engine_options: dict[str, bool | int | float | str] = Field(
        {},
        description="Further options of vLLM's engine on GPUs that change speed and memory alone, such as "
        "`max_num_seqs` or `max_num_batched_tokens`.",
    )
    shards: int = Field(
        1, gt=0, description="Jobs that divide the prompts of a rollouts or evaluate artifact; each has the resources."
    )
    part_prompts: int = Field(64, gt=0, description="Prompts whose finished completions are saved together.")
    state_every_steps: int | None = Field(
        None, gt=0, description="Training steps between saved resume states; if left out, 1 on GPUs and 10 on a CPU."
    )
    keep_last_state: bool = Field(
        False,
        description="Keep the state after the last training step, as large as a resume state: a run of more steps then "
        "continues from it (docs/training.md 4).",
    )
    max_sampler_gap: float = Field(
        0.3, gt=0, description="Training stops where log-probs of sampler and trainer differ more (mean, in nats)."
    )
    profile_step: int | None = Field(
        None,
        gt=0,
        description="Write a trace of this training step to profile/ in the artifact's folder (chrome://tracing).",
    )
    grader_processes: int = Field(
        1,
        gt=0,
        description="Worker processes of the graders; if left out, as many as the job has cores (resources.cpus), "
        "divided among its training processes.",
    )
    watchdog_seconds: int = Field(3600, gt=0, description="End a training whose phase makes no progress for so long.")
    collective_timeout_seconds: int = Field(
        21600,
        gt=0,
        description="Longest wait of a training process for the others; above watchdog_seconds, which ends hangs.",
    )

    @model_validator(mode="before")
    @classmethod
    def _in_turns(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and "separate_samplers" in settings:
            raise ValueError(
                "separate_samplers was removed: training processes take turns in sampling and training. Leave it out; "
                "for a model that needs several GPUs to sample, set tensor_parallel"
            )
        return settings

    @field_validator("engine_options")
    @classmethod
    def _no_results(cls, options: dict[str, Any]) -> dict[str, Any]:
        refused = sorted(_NOT_RUNTIME & options.keys())
        if refused:
            hint = " (set kv_cache_dtype of the model)" if "kv_cache_dtype" in refused else ""
            names = ", ".join(refused)
            raise ValueError(f"{names}: not an option of the machine; it would change what is sampled{hint}")
        return options

    @property
    def steps_between_states(self) -> int:
        """A step on GPUs takes so long that none of it should be lost."""
        return self.state_every_steps or (1 if self.device == "cuda" else 10)

    @property
    def compiles(self) -> bool:
        """On a CPU compiling takes longer than the small studies that run there."""
        return self.device == "cuda" if self.compile is None else self.compile

    def gpus_used(self, stage: str) -> int:
        """GPUs of one node that a job of the stage takes, at most; 0 on a CPU."""
        if self.device == "cpu":
            return 0
        if stage == "train":
            return max(self.processes, self.tensor_parallel)
        return self.tensor_parallel if stage in ("rollouts", "evaluate", "diagnostics") else 0


class Resources(Model):
    """What a job asks the scheduler for."""

    gpus: int = Field(0, ge=0, description="GPUs of each node.")
    mem_mb: int = Field(
        4000, gt=0, description="Memory of each node in MB; more on a retry after an out-of-memory end."
    )
    max_mem_mb: int | None = Field(
        None, gt=0, description="The most memory that such a retry requests, in MB; if left out, twice mem_mb."
    )
    runtime_minutes: int = Field(60, gt=0, description="Time limit in minutes.")
    cpus: int = Field(1, gt=0, description="CPU cores of each node.")
    nodes: int = Field(1, gt=0, description="Nodes; more than one for training alone.")
    warning_seconds: int = Field(
        300, ge=0, description="Seconds before the time limit at which Slurm sends SIGTERM; 0: it sends none."
    )


class RuntimeEntry(Model):
    """Settings and resources of some jobs; what is left out keeps its value."""

    settings: dict[str, Any] = Field({}, description="Settings of the job (table `runtime`).")
    resources: dict[str, Any] = Field({}, description="What the job requests (table `resources`).")


class MlflowSettings(Model):
    """How MLflow is updated while a training runs (docs/mlflow.md)."""

    live: bool = Field(
        False, description="Stream metrics while training runs. With a server in MLFLOW_TRACKING_URI it is always done."
    )
    seconds: float = Field(10, ge=0.1, le=3600, description="Seconds between two updates.")


class RuntimeConfig(Model):
    """Defaults, then per stage, then per model, then per `model.stage`; later ones win."""

    warm_start: bool = Field(False, description="On one machine, fork jobs from a process that has torch loaded.")
    mlflow: MlflowSettings = Field(MlflowSettings(), description="Updates of MLflow while a training runs.")
    view_check_mb: float = Field(
        256, ge=0, description="Tables and reports hash files up to this size before they read them; else only sizes."
    )
    defaults: RuntimeEntry = Field(RuntimeEntry(), description="Every job.")
    stages: dict[str, RuntimeEntry] = Field({}, description="By stage.")
    models: dict[str, dict[str, RuntimeEntry]] = Field(
        {}, description="By model (the slug of its artifact), then by stage; `all` is every stage."
    )

    _file: str = PrivateAttr("config/runtime.yaml")

    @property
    def file(self) -> str:
        """Where these settings were read: messages name it."""
        return self._file

    def read_from(self, path: str) -> None:
        """Record where these settings were read."""
        self._file = path
