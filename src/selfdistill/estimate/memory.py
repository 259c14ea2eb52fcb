"""Bytes of each GPU, part by part, in the phases that a step goes through; and what would make them fewer.

    held always         weights, gradients and AdamW's two moments of what is trained, the teacher's weights
    while sampling      + the engine: the torch sampler's cache and logits, or the share that vLLM takes
    while updating      + activations, the loss block of one chunk, bfloat16 copies of weights, gathered weights

Weights, gradients and moments are float32 whatever the compute type; a teacher that never changes may be bfloat16. The
peak is that of the worse phase: a colocated engine sleeps while the weights are updated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from selfdistill.estimate.host_memory import state_copy
from selfdistill.estimate.workload import Workload
from selfdistill.schema.common import Lora

Phase = Literal["always", "sampling", "updating"]

#: Float32 buffers of one chunk's logits that exist at once: the logits, and the teacher's or their gradient. Where the
#: whole vocabulary is compared instead of the most likely tokens there are some more.
LOSS_BUFFERS = 2
#: Logits whose exponentials exist at once, three times, as losses/normalise.py has it; a test compares the two.
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
#: The same of the sampler, a row each: logits, log-probs, probabilities and (twice as wide) their sums.
_DRAW_BUFFERS = 5
#: Growing the cache of the torch sampler copies its keys, then its values, while the old ones are still there.
_CACHE_GROWTH = 1.5
#: Share of a GPU that a recommendation leaves free.
SPARE = 0.03
#: What a process holds besides tensors: CUDA context, kernels, communication buffers. An assumption, not a measurement.
GPU_OVERHEAD_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Part:
    """`how` says in a few words what the bytes are made of."""

    name: str
    phase: Phase
    bytes: int
    how: str


@dataclass(frozen=True)
class Plan:
    """All parts of one GPU. `capacity` None: no limit is known.

    `cached_completions`: completions of full length that fit into the KV cache of one vLLM engine, which does not start
    without room for one; None where this is not known, or another engine samples. `starting`: bytes of the peak before
    the first step.
    """

    parts: list[Part]
    capacity: int | None
    cached_completions: int | None
    starting: int

    def total(self, phase: Phase) -> int:
        """Bytes held in a phase, with those that are always held."""
        return sum(part.bytes for part in self.parts if part.phase in ("always", phase))

    @property
    def peak(self) -> int:
        return max(self.starting, self.total("sampling"), self.total("updating"))

    @property
    def fits(self) -> bool | None:
        return None if self.capacity is None else self.peak <= self.capacity and self.cached_completions != 0


def plan_memory(work: Workload, capacity: int | None = None) -> Plan:
    """Every part of one GPU; `capacity` is its memory in bytes."""
    parts = [*_held(work), *_sampling(work, capacity), *_updating(work)]
    starting = _starting(work, {(part.name, part.phase): part.bytes for part in parts})
    return Plan([part for part in parts if part.bytes], capacity, _cached_completions(work, capacity), starting)


def _starting(work: Workload, parts: Mapping[tuple[str, Phase], int]) -> int:
    """The worse of two: the engine starts, beside a policy that is there already unless it is sharded; then it sleeps,
    and the shards of policy and teacher are filled, from one whole tensor at a time.
    """
    sizes, overhead = work.dimensions, parts.get(("overhead", "always"), 0)
    policy, engine = parts["parameters", "always"], parts.get(("vLLM engine", "sampling"), 0)
    largest = 4 * max(sizes.head_parameters, sizes.layer_parameters)
    loading = policy + parts.get(("teacher", "always"), 0) + (largest if work.is_sharded else 0)
    return overhead + max(engine + (0 if work.is_sharded else policy), loading)


def _held(work: Workload) -> Iterator[Part]:
    ranks = work.shards
    network, adapters = work.dimensions.parameters, work.adapter_parameters
    trained = network if adapters is None else adapters
    share = f" / {ranks} processes" if ranks > 1 else ""
    all_of_it = f"{(network + (adapters or 0)) / 1e9:.3g} billion x 4 bytes{share}"
    changing = f"{trained / 1e9:.3g} billion x"
    yield Part("parameters", "always", 4 * -(-(network + (adapters or 0)) // ranks), all_of_it)
    yield Part("gradients", "always", 4 * -(-trained // ranks), f"{changing} 4 bytes{share}")
    yield Part("optimiser", "always", 8 * -(-trained // ranks), f"AdamW's two moments, {changing} 8 bytes{share}")
    if work.teacher == "copy" and (adapters is None or work.is_sharded):
        narrow = work.dimensions.matrix_parameters if work.has_narrow_teacher else 0
        of_type = f"{network / 1e9:.3g} billion x 2 bytes (bfloat16){share}" if narrow else all_of_it
        held = 4 * network - 2 * narrow
        yield Part("teacher", "always", -(-held // ranks), f"a second network, {of_type}")
    elif work.teacher == "copy":
        yield Part("teacher", "always", 4 * trained, "a second set of adapters; the network is shared")
    if work.copies > 1:
        how = f"not yet summed over the nodes, {changing} 4 bytes{share}"
        yield Part("gradients of the node", "updating", 4 * -(-trained // ranks), how)
    if work.device == "cpu" and (copied := state_copy(work)):
        yield Part("copied state", "always", copied, "the resume state that is being written")
    if work.device == "cuda":
        yield Part("overhead", "always", GPU_OVERHEAD_BYTES, "context, kernels, buffers of libraries: assumed")


def _sampling(work: Workload, capacity: int | None) -> Iterator[Part]:
    sizes = work.dimensions
    if work.engine == "torch":
        cache = sizes.cache_bytes(work.sampled_positions, work.longest_sampled, 4)
        how = f"{work.sampled_positions:,} positions, float32, x {_CACHE_GROWTH:g} while it grows"
        yield Part("KV cache", "sampling", round(cache * _CACHE_GROWTH), how)
        logits = work.sampled_rows * sizes.vocabulary * 4 * _DRAW_BUFFERS
        yield Part("sampler logits", "sampling", logits, f"{work.sampled_rows} rows x vocabulary x {_DRAW_BUFFERS}")
        if work.is_sharded:
            yield Part("gathered weights", "sampling", 4 * sizes.parameters, "the whole network, to sample from")
    elif work.engine == "vllm":
        if capacity is not None:
            count = _cached_completions(work, capacity)
            cache = f"KV cache of {count} completions" if count else "no room for the KV cache of one completion"
            how = f"gpu_memory_fraction {work.engine_fraction:g}: weights and {cache} of full length"
            yield Part("vLLM engine", "sampling", round(work.engine_fraction * capacity), how)
        else:
            least = 2 * sizes.parameters // work.tensor_parallel
            yield Part("vLLM engine", "sampling", least, "bfloat16 weights; the KV cache takes what is left")


def _cached_completions(work: Workload, capacity: int | None) -> int | None:
    if work.engine != "vllm" or capacity is None:
        return None
    room = work.engine_fraction * capacity * work.tensor_parallel - 2 * work.dimensions.parameters
    longest = work.longest_sampled
    return max(0, int(room // work.dimensions.cache_bytes(longest, longest, work.kv_cache_bytes)))


def _updating(work: Workload) -> Iterator[Part]:
    sizes, c = work.dimensions, work.compute_bytes
    kept = sizes.kept_bytes_per_token(c)
    tokens = work.student_tokens
    if work.has_checkpointing:
        stored, one = tokens * sizes.layers * 4 * sizes.hidden, tokens * kept
        how = f"{tokens:,} tokens: the input of {sizes.layers} layers, and all of one layer"
    else:
        stored, one = tokens * sizes.layers * kept, 0
        how = f"{tokens:,} tokens x {sizes.layers} layers, no checkpointing"
    ends = tokens * sizes.hidden * (8 + c + 4) + 3 * work.loss_tokens * 4 * sizes.hidden
    working = tokens * c * 3 * sizes.intermediate
    teacher = work.teacher_tokens * (c * (3 * sizes.intermediate + sizes.query_width) + 12 * sizes.hidden)
    yield Part("activations", "updating", stored + one + ends, how)
    # The teacher reads first and keeps nothing; what it works with is free again when the student goes backward.
    working = max(working, teacher - stored - one)
    yield Part("working memory", "updating", working, "gradients of one layer's activations")
    # Keys are float32 (rotations leave it behind), values of the type that computes.
    kept = work.teachers * sum((4 + c) * sizes.cache_bytes(prompt, prompt, 1) // 2 for prompt in work.shared_prompts)
    yield Part("teacher's prompt", "updating", kept, "keys and values, read once for the rows of a group")
    yield Part("loss block", "updating", _loss_bytes(work), f"{work.chunk_tokens} tokens x vocabulary at a time")
    if c == 2:
        each = sizes.layer_parameters if work.has_checkpointing else sizes.parameters
        cast = work.teachers - (work.has_narrow_teacher and not work.is_sharded)
        heads = 2 * sizes.head_parameters * (1 + cast)
        layers = 0 if work.is_sharded else 2 * each  # Sharded layers are gathered in bfloat16, and freed after use.
        yield Part("bfloat16 copies", "updating", layers + heads, "weights as autocast has cast them, heads")
    if work.is_sharded:
        # The head while the loss is computed. An embedding of its own is beside it when most activations are gone.
        ends = 4 * sizes.head_parameters
        ends += 0 if sizes.is_tied else max(0, ends - stored)
        how = f"two layers ({'bfloat16' if c == 2 else 'float32'}) and the head, whole"
        yield Part("gathered weights", "updating", 2 * c * sizes.layer_parameters + ends, how)
        if work.adapter_parameters is None:
            how = "of the head, then of the embedding, and the copy that is summed over the processes"
            yield Part("whole gradient", "updating", 2 * 4 * sizes.head_parameters, how)
        if work.teacher == "copy" and not work.has_narrow_teacher:
            yield Part("teacher's head", "updating", 4 * sizes.head_parameters, "gathered while the loss is computed")


def _loss_bytes(work: Workload) -> int:
    """Logits of one chunk, a few times, and the exponentials of a few rows."""
    chunk = work.chunk_tokens * work.dimensions.vocabulary
    buffers = LOSS_BUFFERS + work.has_temperature + max(0, 2 * (work.teachers - 1))
    return chunk * (4 * buffers + (4 if work.compute_bytes == 2 else 0)) + 12 * min(BLOCK_ELEMENTS[work.device], chunk)


@dataclass(frozen=True)
class Suggestion:
    """A change and the peak with it. `changes_results`: it belongs to the recipe, not to the machine."""

    change: str
    peak: int
    fits: bool | None
    changes_results: bool = False


def suggestions(work: Workload, capacity: int | None = None, least_saving: float = 0.02) -> list[Suggestion]:
    """Single changes that lower the peak by at least that share, or give vLLM's engine the room that it lacks.

    The most helpful come first.
    """
    now = plan_memory(work, capacity)
    found = []
    for change, changed, changes_results in _changes(work, capacity):
        plan = plan_memory(changed, capacity)
        gives_room = now.cached_completions == 0 and plan.cached_completions
        if gives_room or plan.peak <= (1 - least_saving) * now.peak:
            found.append(Suggestion(change, plan.peak, plan.fits, changes_results))
    return sorted(found, key=lambda s: (s.changes_results, not s.fits, s.peak))


def spread(work: Workload, gpus: int) -> Workload:
    """The same run with its weights sharded over this many GPUs."""
    return replace(work, processes=gpus, is_sharded=gpus > 1, copies=1)


def fewest_gpus(work: Workload, capacity: int) -> int | None:
    """The fewest GPUs, of 1, 2, 4, ... 64, on which the run fits with its weights sharded; None if it does not."""
    counts = (2**power for power in range(7) if 2**power % work.tensor_parallel == 0)
    return next((count for count in counts if plan_memory(spread(work, count), capacity).fits), None)


def largest_micro_batch(work: Workload, capacity: int) -> int:
    """`micro_batch_tokens`, doubled while the updates fit and a micro-batch gets more rows; as it is if none does."""
    best = tried = work
    while tried.student_tokens < work.rows_per_process * work.longest_student:
        tried = replace(tried, micro_batch_tokens=2 * tried.micro_batch_tokens)
        if plan_memory(tried, capacity).total("updating") > (1 - SPARE) * capacity:
            break
        best = tried if tried.student_tokens > best.student_tokens else best
    return best.micro_batch_tokens


def _changes(work: Workload, capacity: int | None) -> Iterator[tuple[str, Workload, bool]]:
    fewest = max(work.longest_student, work.longest_teacher)
    if work.micro_batch_tokens > fewest:
        half = max(fewest, work.micro_batch_tokens // 2)
        yield f"micro_batch_tokens: {half}", replace(work, micro_batch_tokens=half), False
    if not work.has_checkpointing:
        yield "gradient checkpointing (device: cuda)", replace(work, has_checkpointing=True), False
    more = 2 * work.processes
    yield f"processes: {more}, sharded", spread(work, more), False
    if work.processes > 1 and not work.is_sharded:
        yield "sharded weights instead of replicas", replace(work, is_sharded=True), False
    if work.shared_prompts:
        yield "share_prompts: false", replace(work, share_prompts=False), False
    if work.copies > 1:
        yield "sharding: full", replace(work, copies=1), False
    if work.engine == "torch":
        half = max(work.longest_student, work.sampler_batch_tokens // 2)
        yield f"sampler_batch_tokens: {half}", replace(work, sampler_batch_tokens=half), False
    if work.engine == "vllm":
        # A smaller engine samples more slowly, so only where this one does not fit.
        if plan_memory(work, capacity).fits is False:
            lower = round(work.engine_fraction / 2, 3)
            yield f"gpu_memory_fraction: {lower:g}", replace(work, engine_fraction=lower), False
        yield from _larger_engine(work, capacity)
    if work.teacher == "copy" and work.shows_context:
        yield "method.teacher.kind: live", replace(work, teacher="shared", teachers=1), True
    if work.adapter_parameters is None:
        adapters = work.dimensions.adapter_parameters(Lora())
        yield f"lora: {{rank: {Lora().rank}}}", replace(work, adapter_parameters=adapters), True
    if work.compute_bytes == 4:
        yield "precision: bfloat16", replace(work, compute_bytes=2), True
    half = work.completion_tokens // 2
    if half:
        yield f"training_sampling.max_tokens: {half}", replace(work, completion_tokens=half), True


def _larger_engine(work: Workload, capacity: int | None) -> Iterator[tuple[str, Workload, bool]]:
    """Engines of the fewest GPUs that have room for a completion; they divide the processes and the attention heads."""
    for gpus in range(work.tensor_parallel + 1, work.processes + 1):
        larger = replace(work, tensor_parallel=gpus)
        if work.processes % gpus == work.dimensions.heads % gpus == 0 and _cached_completions(larger, capacity):
            yield f"tensor_parallel: {gpus}", larger, False
            return
