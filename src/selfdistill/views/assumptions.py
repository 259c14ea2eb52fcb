"""The report's section on what a synthetic world assumes: the settings of its base models' pretraining text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from selfdistill.artifacts.store import Artifact
from selfdistill.schema.base import Model
from selfdistill.schema.toy import ChainMixture, ToyMixture
from selfdistill.views.page import Section, Table, num, text
from selfdistill.views.style import percent

_ASSUMED = (
    "Part of what is seen here was put in by hand. The base model was pretrained on generated text that teaches it two "
    "ways to answer: at once, or by a search in words. In that text a full solution in the prompt is followed by a "
    "short, confident answer; a final answer alone changes little. Large models bring such habits with them; here they "
    "are assumptions, and so is the small effect of the context without thinking."
)
_EMERGENT = (
    "Not put in, but a result of training: a habit that exists only with a solution in the prompt passes to the "
    "student, which sees none, even in families that training never touched; accuracy falls with it, or does not; a "
    "method memorises a few problems; GRPO searches more.",
    "Out of distribution means families that occur in pretraining but never in later training.",
    "The same rules hold for every family: no family was made to fail.",
)


def assumptions_section(artifacts: Sequence[Artifact], rows: Sequence[dict[str, Any]]) -> Section | None:
    """Assumed against emergent, a column for each base model that was made here; None for given models alone.

    `rows`: those of the report's plan, which name the models of a base.
    """
    models: dict[str, dict[str, None]] = {}
    for row in rows:
        models.setdefault(row.get("train_artifact", ""), {})[row["model"]] = None
    made = [artifact for artifact in artifacts if artifact.stage == "pretrain"]
    if not made:
        return None
    in_order = sorted(made, key=lambda artifact: list(models).index(artifact.name))
    shares = [dict(_shares(artifact)) for artifact in in_order]
    assumed = dict.fromkeys(name for of_base in shares for name in of_base)
    table = [
        [text(name), *(num(percent(found[name]) if name in found else "–") for found in shares)] for name in assumed
    ]
    header = ("assumed of the pretraining text", *(", ".join(models[artifact.name]) for artifact in in_order))
    return Section("assumptions", "What this small world assumes, and what emerges in it", _ASSUMED,
                   [Table(header, table)], _EMERGENT)  # fmt: skip


def _shares(artifact: Artifact) -> Iterator[tuple[str, float]]:
    """(description of a setting, its share) of the text that a base model was pretrained on."""
    params = artifact.frozen_spec["params"]
    chains = params.get("chains")
    settings = ChainMixture.model_validate(chains) if chains else ToyMixture.model_validate(params["mixture"])
    yield from _described(settings)


def _described(settings: Model) -> Iterator[tuple[str, float]]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Model):
            yield from _described(value)
        elif value is not None:
            yield (field.description or name).rstrip("."), value
