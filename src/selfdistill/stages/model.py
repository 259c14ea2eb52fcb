"""A pretrained model: a folder of links to the pinned files."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from selfdistill.assets import Assets
from selfdistill.generation.loading import load_tokenizer
from selfdistill.prompts import with_date
from selfdistill.run.job import Job
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import ModelSpec


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(ModelSpec)
    assets = Assets.here()
    source = assets.model_folder(spec.pin)
    if unchecked := assets.check_model_files(spec.pin, source):
        job.tee.print(f"not checked, since config/assets.lock.yaml has no digest of them: {', '.join(unchecked)}")
        job.notes["files_without_digest_in_lock"] = unchecked
    target = job.artifact.payload / "model"
    target.mkdir(parents=True)
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and ".cache" not in path.parts]
    for path in files:
        link = target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    text = chat_template(spec, source)
    if text is not None:
        template = target / "chat_template.jinja"
        template.unlink(missing_ok=True)
        template.write_text(text, encoding="utf-8")
    return {"files": len(files), "pin": spec.pin.identity()}


def chat_template(spec: ModelSpec, folder: Path) -> str | None:
    """The template that takes the place of the model's own, with the date of the spec; None leaves the model's own."""
    if spec.chat_date is None:
        return spec.chat_template
    text = spec.chat_template or load_tokenizer(folder).chat_template
    if not isinstance(text, str):
        raise UserError(f"chat_date: {folder} has no single chat template; set chat_template to the text of one.")
    return with_date(text, date.fromisoformat(spec.chat_date))
