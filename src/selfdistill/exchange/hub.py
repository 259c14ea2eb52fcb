"""Results in the formats of Hugging Face: a model folder that transformers loads, a data set that datasets loads.

The folder is a copy: a card inside the artifact would change what was sealed. Nothing is uploaded.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from selfdistill.artifacts.store import Artifact
from selfdistill.exchange.cards import data_card, model_card
from selfdistill.files import move_into_place
from selfdistill.schema.errors import UserError

Kind = Literal["model", "dataset"]
Form = Literal["parquet", "saved"]
#: The hub shows this file as the card.
_CARD = "README.md"


def write_model(artifact: Artifact, step: int | None, out: Path, repo: str) -> None:
    """Copy a base model or a checkpoint (default: the last) to a folder, with its card."""
    step, folder = checkpoint(artifact, step)
    _require_whole(artifact, folder, "*")
    card = model_card(artifact, step, repo)
    with _new_folder(out) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
        (partial / _CARD).write_text(card, encoding="utf-8")


def write_dataset(artifact: Artifact, out: Path, repo: str, form: Form = "parquet") -> int:
    """Copy the tables of an artifact to a folder, with their card; returns the number of rows.

    parquet: data/*.parquet, as the hub shows it. saved: what `datasets.load_from_disk` reads.
    """
    from datasets import Dataset

    _require_whole(artifact, artifact.payload, "*.parquet")
    tables = sorted(artifact.payload.rglob("*.parquet"))
    if not tables:
        raise UserError(f"{artifact.name} has neither a model nor a table.")
    rows = Dataset.from_parquet([str(path) for path in tables], keep_in_memory=True)
    card = data_card(artifact, repo, len(rows))
    with _new_folder(out) as partial:
        if form == "saved":
            rows.save_to_disk(partial)
        else:
            (partial / "data").mkdir(parents=True)
            for path in tables:
                shutil.copy(path, partial / "data" / "-".join(path.relative_to(artifact.payload).parts))
        (partial / _CARD).write_text(card, encoding="utf-8")
    return len(rows)


def _require_whole(artifact: Artifact, folder: Path, pattern: str) -> None:
    """UserError unless every file that was sealed below a folder is there with its size."""
    for name, entry in artifact.manifest["files"].items():
        path = artifact.folder / name
        if path.is_relative_to(folder) and path.match(pattern) and not _has_size(path, entry["size"]):
            raise UserError(
                f"{path} is missing or has another size. If it was left out of the archive that was imported here, "
                f"push where it is; otherwise: selfdistill verify {artifact.key}"
            )


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".push-", dir=out.parent) as name:
        partial = Path(name, out.name)
        partial.mkdir()
        yield partial
        move_into_place(partial, out, durable=False)


def kind_of(artifact: Artifact) -> Kind:
    """Whether an artifact is shown as a model or as a data set."""
    return "model" if artifact.stage in ("model", "pretrain", "train") else "dataset"


def checkpoint(artifact: Artifact, step: int | None) -> tuple[int | None, Path]:
    """Step and folder of a checkpoint; the step of a base model is None. UserError for a step that is not there."""
    if artifact.stage != "train":
        if step is not None:
            raise UserError(f"{artifact.name} is a base model: it has no steps.")
        return None, artifact.payload / "model"
    steps = sorted(int(path.name.removeprefix("step-")) for path in artifact.payload.glob("checkpoints/step-*"))
    if not steps:
        raise UserError(f"{artifact.name} has no checkpoints here: was it imported without weights?")
    if step is None:
        step = max(steps)
    if step not in steps:
        raise UserError(f"{artifact.name} has no checkpoint at step {step}. Steps: {', '.join(map(str, steps))}.")
    return step, artifact.payload / "checkpoints" / f"step-{step}"


def upload_command(out: Path, repo: str, kind: Kind) -> str:
    """What uploads a folder, for a person to run."""
    return f"hf upload {repo} {out} . --repo-type {kind}"
