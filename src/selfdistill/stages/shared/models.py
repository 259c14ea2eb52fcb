"""Where the folders of models lie inside artifacts, and how they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.artifacts.store import Artifact
from selfdistill.schema.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def model_folder(artifact: Artifact, step: int | None = None) -> Path:
    """Folder of a base model (step None or 0) or of a checkpoint of a training run."""
    if artifact.stage == "train":
        folder = artifact.payload / "checkpoints" / f"step-{step}"
    else:
        folder = artifact.payload / "model"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model: run `selfdistill verify {artifact.name}`.")
    return folder


def load_tokenizer(artifact: Artifact, step: int | None = None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(artifact, step))


def load_model(artifact: Artifact, step: int | None = None, *, device: str = "cpu") -> PreTrainedModel:
    """The model in evaluation mode, float32. UserError where config/runtime.yaml wants a GPU and none is visible."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("config/runtime.yaml says `device: cuda`, but no GPU is visible to this job.")
    model = AutoModelForCausalLM.from_pretrained(model_folder(artifact, step), dtype=torch.float32)
    return model.eval().to(device)


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All ids that end a completion: the generation config's and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in (*ids, tokenizer.eos_token_id) if i is not None}
