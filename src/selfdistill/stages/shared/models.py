"""Where model folders lie inside artifacts."""

from __future__ import annotations

from pathlib import Path

from selfdistill.artifacts.store import Artifact
from selfdistill.schema.errors import UserError


def model_folder(artifact: Artifact, step: int | None = None) -> Path:
    """Folder of a base model (step None or 0) or of a checkpoint of a training run."""
    if artifact.stage == "train":
        folder = artifact.payload / "checkpoints" / f"step-{step}"
    else:
        folder = artifact.payload / "model"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} does not hold a model: run `selfdistill verify {artifact.name}`.")
    return folder
