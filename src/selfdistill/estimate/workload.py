"""What decides the memory and the work of a training run: the model's sizes, the recipe, the machine settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfdistill.estimate.dimensions import Dimensions
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec

#: Elements of one chunk's logits, as training/network.py has it; a test compares the two.
CHUNK_ELEMENTS = {"cpu": 64 * 152_064, "cuda": 512 * 152_064}

#: Tokens of a teacher's prompt that is read once for a group, as training/prefix.py has it; a test compares the two.
LEAST_SHARED_TOKENS = 512


@dataclass(frozen=True)
class Workload:
    """`is_sharded`: weights, gradients and optimiser are spread over the processes; without, each holds all of them.
    `copies`: nodes that each have all of them, spread over their own processes.

    `adapter_parameters`: weights of LoRA's adapters, None where the network itself is trained. `teacher`: a copy of the
    network, the policy itself (shared), or none; `teachers` is the number of networks that it reads with, one of them
    with matrices in bfloat16 if `has_narrow_teacher`, or a copy whose weights change if `has_moving_teacher`;
    `shows_context` says that it reads more than the student does, and `teacher_prompts` has the longest prompt of each
    of its passes. Lengths are the longest possible ones. `regenerated_rows` are completions that a step samples besides
    `rows_per_step`; `regeneration_prompt` is the longest prompt of them. `group_size`: rows that may have one prompt.
    """

    dimensions: Dimensions
    device: Literal["cpu", "cuda"]
    adapter_parameters: int | None
    teacher: Literal["none", "copy", "shared"]
    teachers: int
    has_narrow_teacher: bool
    has_moving_teacher: bool
    shows_context: bool
    compute_bytes: int
    processes: int
    is_sharded: bool
    has_checkpointing: bool
    micro_batch_tokens: int
    prompt_tokens: int
    teacher_prompts: tuple[int, ...]
    completion_tokens: int
    has_temperature: bool
    rows_per_step: int
    updates_per_step: int
    engine: Literal["none", "torch", "vllm"]
    kv_cache_bytes: int
    sampler_batch_tokens: int
    tensor_parallel: int
    engine_fraction: float
    steps: int = 1
    regenerated_rows: int = 0
    regeneration_prompt: int = 0
    copies: int = 1
    share_prompts: bool = True
    group_size: int = 1

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and optimiser are in."""
        return self.processes // self.copies if self.is_sharded else 1

    @property
    def engines(self) -> int:
        """Engines that sample at the same time."""
        return max(1, self.processes // self.tensor_parallel)

    @property
    def longest_student(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def longest_teacher(self) -> int:
        return max(self.teacher_lengths, default=0)

    @property
    def longest_sampled(self) -> int:
        """Tokens of the longest sequence that the engine has room for."""
        return max(self.prompt_tokens, self.regeneration_prompt) + self.completion_tokens

    @property
    def teacher_lengths(self) -> list[int]:
        """Longest sequence of each forward pass of the teacher."""
        prompts = () if self.teacher == "none" else self.teacher_prompts
        return [prompt + self.completion_tokens for prompt in prompts]

    @property
    def shared_prompts(self) -> tuple[int, ...]:
        """Lengths of the teacher's prompts that are read once for the rows of a group, and kept while these train."""
        shares = self.share_prompts and self.teacher != "none" and not self.dimensions.window_layers
        return self.teacher_prompts if shares and max(self.teacher_prompts, default=0) >= LEAST_SHARED_TOKENS else ()

    @property
    def student_tokens(self) -> int:
        """Padded tokens of the largest micro-batch: the budget, or one row that is longer than that.

        Rows of a group that share the teacher's prompt have what it leaves of the budget.
        """
        if not self.shared_prompts:
            return self._unshared_tokens
        left = self.micro_batch_tokens - max(self.shared_prompts)
        return max(self._unshared_tokens, min(left, self.group_size * self.longest_student))

    @property
    def _unshared_tokens(self) -> int:
        """Where the teacher reads each row whole, and more than the student, its tokens fill the budget."""
        budget = self.micro_batch_tokens * self.longest_student // max(self.longest_student, self.longest_teacher)
        return min(max(budget, self.longest_student), self.rows_per_process * self.longest_student)

    @property
    def teacher_tokens(self) -> int:
        return self._unshared_tokens * self.longest_teacher // self.longest_student

    @property
    def loss_tokens(self) -> int:
        """Completion tokens of the largest micro-batch."""
        return max(1, self.student_tokens * self.completion_tokens // self.longest_student)

    @property
    def chunk_tokens(self) -> int:
        """Tokens whose logits exist at once in the loss."""
        return min(max(1, CHUNK_ELEMENTS[self.device] // self.dimensions.vocabulary), self.loss_tokens)

    @property
    def rows_per_process(self) -> int:
        """Completions of one update that one process trains on, if they are spread evenly."""
        return -(-self.rows_per_step // (self.updates_per_step * self.processes))

    @property
    def sampled_positions(self) -> int:
        """Cache positions that one process of the torch sampler holds, at most."""
        rows = -(-self.rows_per_step // self.processes)
        return min(max(self.sampler_batch_tokens, self.longest_sampled), rows * self.longest_sampled)

    @property
    def sampled_rows(self) -> int:
        return max(1, self.sampled_positions // self.longest_student)


def workload_of(
    spec: TrainSpec,
    runtime: StageRuntime,
    dimensions: Dimensions,
    *,
    max_prompt_tokens: int,
    processes: int,
    is_sharded: bool,
    copies: int = 1,
    completion_tokens: int | None = None,
) -> Workload:
    """The workload of a recipe. `completion_tokens` takes the place of the recipe's limit, for SFT it is needed."""
    on_policy = spec.on_policy
    completion = completion_tokens or (on_policy.sampling.max_tokens if on_policy else 0)
    second = spec.method.second_network
    group_size = on_policy.group_size if on_policy else 1
    teacher, teachers = "none", 0
    if second is not None:
        teacher = "shared" if second.kind == "live" else "copy"
        teachers = 2 if second.kind == "trust_region" else 1
    is_narrow = spec.precision == "bfloat16" and spec.lora is None and dimensions.is_bfloat16
    return Workload(
        dimensions=dimensions,
        device=runtime.device,
        adapter_parameters=dimensions.adapter_parameters(spec.lora) if spec.lora else None,
        teacher=teacher,
        teachers=teachers,
        has_narrow_teacher=is_narrow and second is not None and second.kind in ("fixed", "trust_region"),
        has_moving_teacher=second is not None and second.moves,
        shows_context=spec.method.shows_context,
        compute_bytes=2 if spec.precision == "bfloat16" else 4,
        processes=processes,
        is_sharded=is_sharded and processes > 1,
        has_checkpointing=runtime.device == "cuda",
        micro_batch_tokens=runtime.micro_batch_tokens,
        prompt_tokens=max_prompt_tokens,
        teacher_prompts=spec.method.teacher_prompts(max_prompt_tokens, completion),
        completion_tokens=completion,
        has_temperature=on_policy is not None and on_policy.sampling.temperature != 1,
        rows_per_step=spec.prompts_per_step * group_size,
        updates_per_step=spec.prompts_per_step // spec.prompts_per_update,
        engine=on_policy.engine if on_policy else "none",
        kv_cache_bytes=1 if on_policy and on_policy.kv_cache_dtype.startswith("fp8") else 2,
        sampler_batch_tokens=runtime.sampler_batch_tokens,
        tensor_parallel=runtime.tensor_parallel,
        engine_fraction=runtime.gpu_memory_fraction,
        steps=spec.steps,
        regenerated_rows=spec.prompts_per_step * spec.method.regenerated(group_size),
        regeneration_prompt=spec.method.longest_sampled(max_prompt_tokens),
        copies=copies,
        share_prompts=runtime.share_prompts,
        group_size=group_size,
    )
