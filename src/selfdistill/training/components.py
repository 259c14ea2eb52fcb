"""The objects of a training run that have state: built once, saved and loaded together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfdistill.generation.base import sample_seed
from selfdistill.generation.loading import empty_model
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.training import state
from selfdistill.training.compilation import choose_compilation
from selfdistill.training.distributed import World
from selfdistill.training.methods import TrainingMethod, make_method
from selfdistill.training.metrics import epistemic_tokens
from selfdistill.training.network import Network
from selfdistill.training.optimiser import make_adamw
from selfdistill.training.sharded_loading import is_empty, placeholders, shard_from_folder
from selfdistill.training.sharded_state import ShardedStateWriter, read_sharded_state, sharded_tensors
from selfdistill.training.sharding import shard_model
from selfdistill.training.teacher import TeacherNetwork
from selfdistill.training.update import Updater
from selfdistill.training.varlen import choose_attention
from selfdistill.training.weights import add_adapters, trained_parameters

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Components:
    """Policy, method, teacher, optimiser and the ranks that train."""

    model: Any
    method: TrainingMethod
    teacher: TeacherNetwork | None
    adamw: torch.optim.AdamW
    updater: Updater
    world: World
    #: Writes the states of sharded weights.
    state_writer: ShardedStateWriter | None = None

    def save(self, folder: Path, progress: state.Progress, on_complete: Callable[[], None] = lambda: None) -> None:
        """Write a resume state; the main rank calls `on_complete` when it is whole. Collective.

        Sharded weights are only copied: a thread writes them while training goes on, and completes the state.
        """
        self.finish_saving()
        progress.method = dict(self.method.state)
        new = state.NewState(folder, progress, self.world)

        def complete(known: dict[str, str]) -> None:
            new.complete({f"{state.SHARDED}/{name}": digest for name, digest in known.items()})
            on_complete()

        weights = {kind: {n: t.detach() for n, t in named.items()} for kind, named in self._weights().items()}
        if self.state_writer is not None:
            tensors = sharded_tensors(self.model, self.adamw, weights)
            self.state_writer.start(new.partial / state.SHARDED, tensors, complete)
            return
        if self.world.is_main:
            rest = {"optimiser": self.adamw.state_dict(), "generators": state.generator_states()}
            torch.save(weights | rest, new.partial / state.TENSORS)
            complete({})
        self.world.barrier()

    def check_saving(self) -> None:
        """Raise the error of a state that could not be written, if there is one by now. Collective."""
        if self.state_writer is not None:
            self.state_writer.check()

    def finish_saving(self) -> None:
        """Wait until the last state is whole. Raises what its writing raised. Collective."""
        if self.state_writer is not None:
            self.state_writer.wait()

    def load(self, folder: Path) -> state.Progress | None:
        """Load the newest intact state; None where there is none. Errors as in `state.newest_state`."""
        newest = state.newest_state(folder, self.world)
        if newest is None:
            return None
        if self.teacher is not None:
            self.teacher.separate()
        with torch.no_grad():
            self._read(newest)
        progress = state.read_progress(newest)
        self.method.state = dict(progress.method)
        return progress

    def _weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors that training changes, without the optimiser's."""
        return {
            "policy": trained_parameters(self.model),
            "teacher": self.teacher.state() if self.teacher else {},
        }

    def _read(self, folder: Path) -> None:
        if self.state_writer is not None:
            if not state.is_sharded(folder):
                raise UserError(f"{folder} was saved without sharding: resume with `sharding: none`, or move it away.")
            read_sharded_state(folder / state.SHARDED, self.model, self.adamw, self._weights())
            return
        if not (folder / state.TENSORS).is_file():
            raise UserError(
                f"{folder} was saved with sharding: resume with `sharding: full` or hybrid, or move it away."
            )
        # In main memory, a part at a time: a GPU has no room for a second copy of everything.
        tensors = torch.load(folder / state.TENSORS, map_location="cpu", mmap=True, weights_only=True)
        for kind, named in self._weights().items():
            if named.keys() != tensors[kind].keys():
                raise UserError(f"{folder}: its {kind} belongs to another model. Move {folder.parent} away.")
            for name, tensor in named.items():
                tensor.copy_(tensors[kind][name])
        self.adamw.load_state_dict(tensors["optimiser"])
        state.restore_generators(tensors["generators"])


def build_components(
    model: Any, tokenizer: Any, spec: TrainSpec, runtime: StageRuntime, world: World, base: Path | None = None
) -> Components:
    """Everything at step 0. Raises UserError for a model that training cannot use.

    `base`: folder of the weights of an empty model, which is only for sharding.
    """
    torch.manual_seed(sample_seed(spec.seed, "torch"))
    model.train()
    choose_attention(model, DTYPES[spec.precision], world)
    if not is_empty(model):
        model.to(world.device)
    if spec.lora is not None:
        with placeholders(model):
            add_adapters(model, spec.lora)
    if world.device.type == "cuda":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    config = model.config.get_text_config()
    method = make_method(spec, tokenizer, getattr(config, "max_position_embeddings", None))
    temperature = spec.on_policy.sampling.temperature if spec.on_policy else 1.0
    student = Network(
        model,
        temperature=temperature,
        compute_dtype=DTYPES[spec.precision],
        compiles=choose_compilation(runtime, world, DTYPES[spec.precision], model.config._attn_implementation),
    )
    teacher = TeacherNetwork(method.teacher, student) if method.teacher else None
    if world.is_sharded:
        _shard(student, teacher, world, base)
    student.check_head()
    adamw = make_adamw(model, spec.optimiser)
    updater = Updater(
        method=method,
        student=student,
        teacher=teacher,
        adamw=adamw,
        settings=spec.optimiser,
        world=world,
        micro_batch_tokens=runtime.micro_batch_tokens,
        shares_prompts=runtime.share_prompts,
        correction_clip=spec.on_policy.correction_clip if spec.on_policy else None,
        skips_bad_updates=spec.bad_update == "skip",
        is_epistemic_V=epistemic_tokens(tokenizer, config.vocab_size).to(world.device) if teacher else None,
    )
    state_writer = ShardedStateWriter(world) if world.is_sharded else None
    return Components(model, method, teacher, adamw, updater, world, state_writer)


def _shard(student: Network, teacher: TeacherNetwork | None, world: World, base: Path | None) -> None:
    """Shard policy and teacher over the ranks. A sharded model cannot be copied, so the teacher is copied first."""
    empty = is_empty(student.model)
    if teacher is not None:
        teacher.separate(base if empty else None)
    _spread(student, world, base)
    if teacher is None or teacher.network is student:
        return
    _spread(teacher.network, world, base)
    if empty and world.any(not teacher.is_exact()):
        teacher.use(empty_model(base))
        _spread(teacher.network, world, base)


def _spread(network: Network, world: World, base: Path | None) -> None:
    if is_empty(network.model):
        shard_from_folder(network.model, base, world.device, world.mesh, network.compute_dtype)
    else:
        shard_model(network.model, world.mesh, network.compute_dtype)
    network.device = world.device
