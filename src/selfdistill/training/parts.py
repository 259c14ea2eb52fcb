"""The parts of a training run that carry state, built once, saved and loaded together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfdistill.generation.base import sample_seed
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import TrainSpec
from selfdistill.training import state
from selfdistill.training.distributed import World
from selfdistill.training.methods import TrainingMethod, make_method
from selfdistill.training.metrics import epistemic_tokens
from selfdistill.training.network import Network
from selfdistill.training.optimiser import make_adamw
from selfdistill.training.teacher import TeacherNetwork
from selfdistill.training.update import Updater

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Parts:
    """Policy, teacher, optimiser, and who shares the work."""

    model: Any
    method: TrainingMethod
    teacher: TeacherNetwork | None
    adamw: torch.optim.AdamW
    updater: Updater
    world: World

    def save(self, folder: Path, progress: state.Progress) -> None:
        """Write a resume state (first process; the others wait)."""
        if self.world.is_first:
            tensors = {
                "policy": self.model.state_dict(),
                "optimiser": self.adamw.state_dict(),
                "teacher": self.teacher.state_dict() if self.teacher else None,
                "generators": state.generator_states(),
            }
            state.save_state(folder, progress, tensors)
        self.world.wait()

    def load(self, folder: Path) -> state.Progress | None:
        """Load the newest intact state; None where there is none. Errors as in `state.load_state`."""
        loaded = state.load_state(folder, self.world.device)
        if loaded is None:
            return None
        progress, tensors = loaded
        self.model.load_state_dict(tensors["policy"])
        self.adamw.load_state_dict(tensors["optimiser"])
        if self.teacher is not None and tensors["teacher"] is not None:
            self.teacher.load_state_dict(tensors["teacher"])
        state.restore_generators(tensors["generators"])
        return progress


def build_parts(model: Any, tokenizer: Any, spec: TrainSpec, runtime: StageRuntime) -> Parts:
    """Everything at step 0. Raises UserError for a model or a runtime that training cannot use."""
    torch.manual_seed(sample_seed(spec.seed, "torch"))
    world = World(runtime.device)
    if world.size != runtime.processes:
        raise UserError(
            f"runtime: processes = {runtime.processes}, but training was started as {world.size}: start it through "
            "the launcher, or set processes: 1."
        )
    model.to(world.device).train()
    if world.device.type == "cuda":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    config = model.config.get_text_config()
    method = make_method(spec, tokenizer, getattr(config, "max_position_embeddings", None))
    temperature = spec.on_policy.sampling.temperature if spec.on_policy else 1.0
    student = Network(model, temperature=temperature, compute_dtype=DTYPES[spec.precision])
    student.check_head()
    teacher = TeacherNetwork(method.teacher, student) if method.teacher else None
    adamw = make_adamw(model, spec.optimiser)
    updater = Updater(
        method=method,
        student=student,
        teacher=teacher,
        adamw=adamw,
        settings=spec.optimiser,
        world=world,
        micro_batch_tokens=runtime.micro_batch_tokens,
        correction_clip=spec.on_policy.correction_clip if spec.on_policy else None,
        is_epistemic_V=epistemic_tokens(tokenizer, config.vocab_size).to(world.device) if teacher else None,
    )
    return Parts(model, method, teacher, adamw, updater, world)
