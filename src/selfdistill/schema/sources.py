"""Where problems come from: a pinned file, or a generator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from selfdistill.schema.base import Model, Since
from selfdistill.schema.common import AssetPin

ISO_DATE = r"^\d{4}-\d{2}-\d{2}$"


class FieldMap(Model):
    """Columns of a source, as dotted paths; JSON strings on the way are parsed.

    In a list of messages, name a turn by its role (`prompt.user.content`: the last of that role, together with the
    system turn before it) or by its place (`prompt.0.content`, `prompt.-1.content`).
    """

    question: str = Field("question", description="The problem text or prompt.")
    answer: str = Field("answer", description="The gold answer.")
    family: str | None = Field(None, description="A group that tables report by, e.g. the subject.")
    solution: str | None = Field(None, description="A reference solution.")
    choices: str | None = Field(None, description="Answer options, appended to the question as A), B), ...")
    system: Annotated[str | None, Since(None)] = Field(
        None, description="A system message of the problem's own; it takes the place of the model's."
    )

    @property
    def mapped(self) -> list[tuple[str, str]]:
        """The fields that are read, with their paths."""
        return [(name, path) for name, path in self if path is not None]


class FileFields(Model):
    """How the rows of a table file become problems."""

    fields: FieldMap = Field(FieldMap(), description="Which columns hold question, answer, ...")
    instruction: Literal["none", "boxed", "answer_line"] = Field(
        "none", description="Instruction wrapped around the question in the file; it is removed (docs/method.md 8.5)."
    )


class FileSource(FileFields):
    """A table from a file of a pinned asset: parquet, JSON, JSONL or CSV by its ending, also compressed (.gz, .zst)."""

    kind: Literal["file"] = "file"
    pin: AssetPin = Field(description="Which file.")
    within: Annotated[str | None, Since(None)] = Field(
        None, description="The file or folder inside the pinned folder of your own; null takes the whole folder."
    )
    split: Annotated[str | None, Since(None)] = Field(
        None, description="The split of a folder; needed where it holds several."
    )


class LoadedFields(FileFields):
    """What `datasets.load_dataset` is asked for, and how its rows become problems."""

    config: str | None = Field(None, min_length=1, description="Name of the configuration, where there are several.")
    split: str | None = Field(None, min_length=1, description="The split; needed where there are several.")
    files: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="Patterns of the files that are read, such as data/train-*; null takes all."
    )


class LoadedSource(LoadedFields):
    """A split that `datasets.load_dataset` reads: of a repository of the hub at a commit, or of a folder or file."""

    kind: Literal["load_dataset"] = "load_dataset"
    pin: AssetPin = Field(description="Which repository and commit, or which folder or file.")


ToyFamily = Literal["id", "long", "mod", "sum", "chain", "chain_long", "chain_mod", "chain_deep"]


class ToySource(Model):
    """Congruence problems of the toy world (docs/toy.md 1 and 9)."""

    kind: Literal["toy"] = "toy"
    families: list[ToyFamily] = Field(min_length=1, description="Families of problems.")
    count: int = Field(gt=0, description="Number of distinct problems of each family.")
    seed: int = Field(0, ge=0, description="Seed of the generator.")


_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def _plain_number(value: Any) -> Any:
    """2, 2.0 and "2" as 2 (YAML reads 1e-5 as a text); in a list, texts are texts."""
    if isinstance(value, list):
        return [item if isinstance(item, str) else _plain_number(item) for item in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if re.search(r"[.eE]", value) else int(value)
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if is_whole else value


def _plain_numbers(options: Any) -> Any:
    """The options of a task, with every number written in one way."""
    is_mapping = isinstance(options, Mapping)
    return {name: _plain_number(value) for name, value in options.items()} if is_mapping else options


class ReasoningGymSource(Model):
    """Procedural problems of the reasoning-gym library."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str = Field(description="Name of the task, e.g. basic_arithmetic.")
    count: int = Field(gt=0, description="Number of problems.")
    seed: int = Field(0, ge=0, description="Seed of the generator.")
    options: Annotated[
        dict[str, int | float | str | bool | list[int] | list[float] | list[str]], BeforeValidator(_plain_numbers)
    ] = Field({}, description="Options of the task.")


class LiveCodeBenchFields(Model):
    """Which tasks of LiveCodeBench are taken, and which of their tests reward training."""

    first_date: str = Field("2025-02-01", pattern=ISO_DATE, description="Contests from this day on.")
    end_date: str = Field("2025-05-01", pattern=ISO_DATE, description="Contests before this day.")
    training_share: float = Field(0.5, gt=0, le=1, description="Share of the tests that reward training.")
    seed: int = Field(0, ge=0, description="Seed that draws them.")


class LiveCodeBenchSource(LiveCodeBenchFields):
    """Programming tasks of LiveCodeBench with their hidden unit tests (docs/data.md 6)."""

    kind: Literal["livecodebench"] = "livecodebench"
    pin: AssetPin = Field(description="Which file.")


Source = FileSource | LoadedSource | ToySource | ReasoningGymSource | LiveCodeBenchSource


class Part(Model):
    """One side of a split in two. Repeats of a problem fall on the same side; the order of rows does not matter."""

    part: Literal["train", "test"] = Field(description="Which side.")
    test_share: float = Field(0.1, gt=0, lt=1, description="Share of the distinct problems that go to the test side.")
    seed: int = Field(0, ge=0, description="Seed of the draw.")


Least = Annotated[int, Field(ge=0)]


class Expectation(Model):
    """Counts that a source must have; others stop the stage, as the file is not the one that was meant."""

    rows: tuple[Least, Least] | None = Field(None, description="[least, most] usable rows.")
    distinct: tuple[Least, Least] | None = Field(None, description="[least, most] distinct problems among them.")


class NearDuplicates(Model):
    """How alike two problems must be to be listed (docs/data.md 4)."""

    threshold: float = Field(0.5, gt=0, le=1, description="Similarity from which a pair is listed.")
    drop_from: float | None = Field(None, gt=0, le=1, description="Similarity from which a problem is dropped.")


def source_slug(source: Source) -> str:
    """Readable name of a source."""
    if isinstance(source, LiveCodeBenchSource):
        return "livecodebench"
    if isinstance(source, LoadedSource):
        name = (source.pin.repo or source.pin.file or "file").rsplit("/", 1)[-1]
        return "-".join(part for part in (name, source.config, source.split) if part)
    if isinstance(source, FileSource):
        name = source.pin.file or source.pin.repo or "file"
        name = f"{name}/{source.within}" if source.within else name
        *folders, stem = name.rsplit(".", 1)[0].split("/")
        # `train` alone says nothing.
        stem = "-".join([*folders[-1:], stem]) if stem in ("train", "test") else stem
        return f"{stem}-{source.split}" if source.split else stem
    if isinstance(source, ToySource):
        return f"{'-'.join(source.families)}-{source.count}"
    return f"gym-{source.task}-{source.count}"
