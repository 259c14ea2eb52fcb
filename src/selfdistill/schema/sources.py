"""Where problems come from: a pinned file, or a generator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from selfdistill.schema.base import Model
from selfdistill.schema.common import AssetPin


class FieldMap(Model):
    """Columns of a source, as dotted paths (`prompt.0.content`); JSON strings on the way are parsed."""

    question: str = Field("question", description="The problem text or prompt.")
    answer: str = Field("answer", description="The gold answer.")
    family: str | None = Field(None, description="A group that tables report by, e.g. the subject.")
    solution: str | None = Field(None, description="A reference solution.")
    choices: str | None = Field(None, description="Answer options, appended to the question as A), B), ...")


class FileSource(Model):
    """A table from a file of a pinned asset: parquet, JSON, JSONL or CSV by its ending."""

    kind: Literal["file"] = "file"
    pin: AssetPin = Field(description="Which file.")
    fields: FieldMap = Field(FieldMap(), description="Which columns.")
    instruction: Literal["none", "boxed", "answer_line"] = Field(
        "none", description="Instruction wrapped around the question in the file; it is removed (docs/method.md 8.5)."
    )


class ToySource(Model):
    """Congruence problems of the toy world (docs/toy.md 1)."""

    kind: Literal["toy"] = "toy"
    families: list[Literal["id", "long", "mod", "sum"]] = Field(min_length=1, description="Families of problems.")
    count: int = Field(gt=0, description="Number of distinct problems of each family.")
    seed: int = Field(0, ge=0, description="Seed of the generator.")


class ReasoningGymSource(Model):
    """Procedural problems of the reasoning-gym library."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str = Field(description="Name of the task, e.g. basic_arithmetic.")
    count: int = Field(gt=0, description="Number of problems.")
    seed: int = Field(0, ge=0, description="Seed of the generator.")
    options: dict[str, int | float | str | bool | list[int] | list[float] | list[str]] = Field(
        {}, description="Options of the task."
    )


Source = FileSource | ToySource | ReasoningGymSource
