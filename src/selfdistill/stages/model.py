"""A pretrained model: a folder of links to the pinned files."""

from __future__ import annotations

from typing import Any

from selfdistill.assets import Assets
from selfdistill.run.job import Job
from selfdistill.schema.stages import ModelSpec


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(ModelSpec)
    source = Assets.here().model_folder(spec.pin)
    target = job.artifact.payload / "model"
    target.mkdir(parents=True)
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and ".cache" not in path.parts]
    for path in files:
        link = target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    if spec.chat_template is not None:
        template = target / "chat_template.jinja"
        template.unlink(missing_ok=True)
        template.write_text(spec.chat_template, encoding="utf-8")
    return {"files": len(files), "pin": spec.pin.identity()}
