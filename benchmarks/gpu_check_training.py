"""The parts of gpu_check.py that train or sample: a whole step, sharding, vLLM."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gpu_check import Case, Line, error
from networks import END, PADDING, SIZES, make_network, make_questions, make_tokenizer

#: Mean difference of log-probs of sampler and trainer above which training stops (`max_sampler_gap`).
_GAP = 0.3
_PROMPTS, _GROUP = 8, 8
#: Anything but infinity and NaN.
_FINITE = 1e30


class Kept:
    """Groups of a step in memory: nothing is resumed here."""

    def read(self, step: int, prompts: Sequence[Any], first: int) -> dict[int, Any]:
        return {}

    def add(self, step: int, groups: Mapping[int, Any]) -> None: ...

    def drop(self, step: int) -> None: ...


def size_of(case: Case) -> str:
    return "100M" if case.device.type == "cuda" else "toy"


def step(case: Case) -> Iterator[Line]:
    yield from _steps(case, "step", "torch")


def step_vllm(case: Case) -> Iterator[Line]:
    """The engine shares the GPU with training: it sleeps in the updates and gets the new weights."""
    yield from _steps(case, "step_vllm", "vllm")


def _steps(case: Case, part: str, engine: str) -> Iterator[Line]:
    """Two steps each; the numbers are those of the second."""
    for method in ("sdpo", "grpo"):
        found, predicted = train_two_steps(case, method, engine)
        before, after = found.pop("weights")
        yield Line(part, f"{method}: loss", found["loss"], limit=_FINITE)
        yield Line(part, f"{method}: gradient norm", found["grad_norm"], limit=_FINITE)
        # AdamW moves every weight by its rate at most, the first time by just that.
        yield Line(part, f"{method}: weights unmoved", float(torch.equal(before, after)), limit=0.0)
        yield Line(part, f"{method}: sampler gap", found["sampler_gap"], "nats", limit=_GAP)
        yield Line(part, f"{method}: completions", found["tokens_per_second"], "tokens/s")
        for phase in ("sampling", "updates"):
            yield Line(part, f"{method}: {phase}", found[f"seconds_{phase}"], "s")
        if case.device.type == "cuda" and engine == "torch":
            peak = torch.cuda.max_memory_allocated() / 1e9
            yield Line(part, f"{method}: peak memory", peak, "GB", predicted)


def train_two_steps(case: Case, method: str, engine: str) -> tuple[dict[str, Any], float]:
    """The last metrics, with an input matrix before and after; the planner's peak in GB, without its overhead."""
    from selfdistill.estimate import dimensions_of, plan_memory, workload_of
    from selfdistill.schema.runtime import StageRuntime
    from selfdistill.training.data import TrainingFolder
    from selfdistill.training.distributed import World
    from selfdistill.training.loop import train

    # The CPU build of vLLM has no kernel for the heads of the smallest network.
    size = "toy, heads of 32" if engine == "vllm" and case.device.type == "cpu" else size_of(case)
    spec = spec_of(case, method, engine)
    model, tokenizer = make_network(size), make_tokenizer(size)
    place = Path(os.environ["SELFDISTILL_CHECK"]) / f"{method}-{engine}"
    runtime = StageRuntime(device=case.device.type, state_every_steps=10**6, gpu_memory_fraction=0.3)
    sampler = sampler_of(model, tokenizer, runtime, place / "model", engine)
    model = model.to(case.device)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    prompts = prompts_of(size, tokenizer)
    summary = train(
        model, tokenizer, spec, prompts=prompts, examples=None, sampler=sampler, grade=every_other,
        folder=TrainingFolder(*(place / name for name in ("checkpoints", "state", "metrics.jsonl", "profile"))),
        runtime=runtime, world=World.of(runtime), kept=Kept(), record_rollouts=lambda number, rows: None,
        stop_requested=lambda: False, report=lambda line: None,
    )  # fmt: skip
    sampler.close()
    work = workload_of(
        spec, runtime, dimensions_of(model.config.to_dict(), size), processes=1, is_sharded=False,
        max_prompt_tokens=max(len(prompt.prompt_ids) for prompt in prompts),
    )  # fmt: skip
    parts = [part for part in plan_memory(work).parts if part.name != "overhead"]
    peak = max(sum(p.bytes for p in parts if p.phase in ("always", phase)) for phase in ("sampling", "updating"))
    after = model.model.layers[0].mlp.up_proj.weight.detach()
    return dict(summary.last_metrics) | {"weights": (before, after)}, peak / 1e9


def sampler_of(model: Any, tokenizer: Any, runtime: Any, folder: Path, engine: str) -> Any:
    """A sampler as training has it: the torch sampler shares its model, vLLM its GPU."""
    if engine == "torch":
        from selfdistill.generation.torch_sampler import TorchSampler

        return TorchSampler(model, [END], pad_token_id=PADDING)
    from selfdistill.generation.vllm_sampler import VllmSampler

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return VllmSampler.load(folder, runtime, is_colocated=True)


def spec_of(case: Case, method: str, engine: str) -> Any:
    from selfdistill.schema.common import MathGrader, Optimiser, RepromptTemplate, Sampling
    from selfdistill.schema.methods import Grpo, Sdpo
    from selfdistill.schema.stages import TrainSpec
    from selfdistill.schema.training import OnPolicy

    reprompt = RepromptTemplate(frame="{prompt}{solution} w10", solution=" w11 {successful_previous_attempt}")
    chosen = Grpo() if method == "grpo" else Sdpo(top_k=20, reprompt=reprompt)
    tokens = 512 if case.device.type == "cuda" else 24
    values = {
        "method": chosen, "seed": 0, "steps": 2, "prompts_per_step": _PROMPTS, "prompts_per_update": _PROMPTS // 2,
        "draw": "epochs", "optimiser": Optimiser(learning_rate=1e-4, warmup_steps=0),
        "on_policy": OnPolicy(
            group_size=_GROUP, sampling=Sampling(max_tokens=tokens), grader=MathGrader(), engine=engine,
            correction_clip=2.0,
        ),
        "checkpoint_every": 2, "max_steps_without_signal": 50, "precision": "bfloat16", "thinking": None,
    }  # fmt: skip
    return TrainSpec(**values)


def prompts_of(size: str, tokenizer: Any) -> list[Any]:
    from selfdistill.rollouts import Prompt

    chats = make_questions(_PROMPTS, 24, SIZES[size]["vocab_size"])
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    return [Prompt(row, str(row), "", "", "", chat, ids[row]) for row, chat in enumerate(chats)]


def every_other(texts: Sequence[str], prompts: Sequence[Any], stop_reasons: Sequence[str]) -> list[Any]:
    """Half of every group is right, so that every row has an advantage and a demonstration."""
    verdicts = [("correct", 1.0) if index % 2 else ("wrong", 0.0) for index in range(len(texts))]
    return [SimpleNamespace(outcome=name, reward=reward, extracted="", feedback="") for name, reward in verdicts]


def fsdp2(case: Case) -> Iterator[Line]:
    from torch.distributed.device_mesh import init_device_mesh

    from selfdistill.training.network import Network, backward_through_head
    from selfdistill.training.sharding import shard_model, whole

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    backend = "nccl" if case.device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    try:
        results = []
        for is_sharded in (False, True):
            model = make_network(size_of(case)).to(case.device).train()
            if is_sharded:
                shard_model(model, init_device_mesh(case.device.type, (1,)), torch.bfloat16)
            network = Network(model, compute_dtype=torch.bfloat16)
            packed = network.pack([[7, 8, 9], [10] * 5], [[11, 12, 13, END], [14, 15, END]])
            hidden = network.hidden(packed)
            backward_through_head(network, hidden, lambda part, logits: logits.log_softmax(-1)[:, 9].sum())
            gradients = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
            results.append((hidden.detach(), gradients))
        (expected, gradients), (found, own) = results
        yield Line("fsdp2", "hidden states", error(found, expected), "relative error", limit=2e-2)
        worst = max(error(own[name], gradients[name]) for name in gradients)
        yield Line("fsdp2", "worst gradient of a weight", worst, "relative error", limit=5e-2)
        yield Line("fsdp2", "weights after save, change, load", saved_and_loaded(model), "relative error", limit=0)
    finally:
        torch.distributed.destroy_process_group()


def saved_and_loaded(model: Any) -> float:
    """Largest error of weights that changed while their state was written, once they are read again."""
    from selfdistill.training.distributed import World
    from selfdistill.training.sharded_state import ShardedStateWriter, read_sharded_state, sharded_tensors
    from selfdistill.training.sharding import local

    adamw = torch.optim.AdamW(model.parameters())
    adamw.step()
    weights = {"policy": {name: parameter.detach() for name, parameter in model.named_parameters()}}
    expected = {name: local(tensor).clone() for name, tensor in weights["policy"].items()}
    folder = Path(os.environ["SELFDISTILL_CHECK"]) / "state"
    writer = ShardedStateWriter(World(next(model.parameters()).device.type))
    writer.start(folder, sharded_tensors(model, adamw, weights), lambda digests: None)
    for tensor in weights["policy"].values():
        local(tensor).zero_()
    writer.wait()
    read_sharded_state(folder, model, adamw, weights)
    return max(error(local(tensor), expected[name]) for name, tensor in weights["policy"].items())


def vllm(case: Case) -> Iterator[Line]:
    from selfdistill.generation.vllm_sampler import VllmSampler
    from selfdistill.schema.common import Sampling
    from selfdistill.schema.runtime import StageRuntime
    from selfdistill.training.network import Network, completion_logprobs

    size = "100M" if case.device.type == "cuda" else "toy, heads of 32"
    model, folder = make_network(size), Path(os.environ["SELFDISTILL_CHECK"]) / "vllm"
    model.save_pretrained(folder)
    make_tokenizer(size).save_pretrained(folder)
    runtime = StageRuntime(device=case.device.type, gpu_memory_fraction=0.3)
    sampler = VllmSampler.load(folder, runtime, is_colocated=True, max_positions=256)
    prompts, seeds = [[7, 8, 9], [10, 11]], [[1, 2], [3, 4]]
    dtype = torch.bfloat16 if case.device.type == "cuda" else torch.float32

    def gap() -> float:
        groups = sampler.generate(prompts, seeds, Sampling(max_tokens=64), None)
        rows = [(p, c) for p, group in zip(prompts, groups, strict=True) for c in group]
        network = Network(model.to(case.device), compute_dtype=dtype)
        packed = network.pack([p for p, _ in rows], [c.token_ids for _, c in rows])
        own = completion_logprobs(network, packed).cpu()
        return float((own - torch.tensor([x for _, c in rows for x in c.logprobs])).abs().mean())

    yield Line("vllm", "gap to the trainer", gap(), "nats", limit=_GAP)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    sampler.update_weights(lambda: iter(model.state_dict().items()))
    yield Line("vllm", "gap with new weights, after sleep and wake", gap(), "nats", limit=_GAP)
    if case.device.type == "cuda":
        awake = torch.cuda.mem_get_info()[0]
        sampler._wake("weights", "kv_cache")
        held = (awake - torch.cuda.mem_get_info()[0]) / 1e9
        yield Line("vllm", "memory that sleep gives back", held, "GB", 0.3 * torch.cuda.mem_get_info()[1] / 1e9)
    sampler.close()
