"""What a section of the report is made of; the template knows these and nothing of the study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from selfdistill.views.figures import WIDE, Plot
from selfdistill.views.lineage import link
from selfdistill.views.style import Look

#: Where every trained model has one seed, the second half holds nowhere.
INTERVAL = "Bars are 95 % intervals over training seeds and problems (with one seed: over problems alone)"


@dataclass(frozen=True)
class Cell:
    """A table cell; `tone` is a verdict or num; `detail` stands smaller below; `keys` link to manifests."""

    text: str
    tone: str = ""
    keys: Sequence[tuple[str, str]] = ()
    look: Look | None = None
    detail: str = ""


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    is_folded: bool = False


@dataclass(frozen=True)
class Panel:
    """A plot with its title."""

    title: str
    plot: Plot


@dataclass(frozen=True)
class Figure:
    """Panels side by side, with the sentence below them and links to the artifacts behind them."""

    panels: Sequence[Panel]
    caption: str
    sources: Sequence[tuple[str, str]]
    legend: Sequence[Look] = ()

    @property
    def columns(self) -> int:
        """Panels in a row on a wide screen: rows of like length, at most three wide or five narrow ones."""
        most = 3 if any(panel.plot.width >= WIDE for panel in self.panels) else 5
        return ceil(len(self.panels) / ceil(len(self.panels) / most))


@dataclass
class Section:
    """`lead` is one plain sentence computed from the data; `blocks` are figures, tables and completions to read."""

    anchor: str
    title: str
    lead: str
    blocks: list[Any] = field(default_factory=list)
    notes: Sequence[str] = ()

    @property
    def short(self) -> str:
        """Its name in the list of sections."""
        return self.anchor.upper() if self.anchor == "sft" else self.anchor.capitalize()


def text(value: object) -> Cell:
    return Cell(str(value))


def num(value: object) -> Cell:
    return Cell(str(value), tone="num")


def method(look: Look) -> Cell:
    """The name of a method, with its colour."""
    return Cell(look.label, look=look)


def keys(names: Iterable[str]) -> list[tuple[str, str]]:
    """(stage and key, address of the manifest) of artifacts, each once."""
    return [(f"{name.split('/')[0]} {name[-12:-6]}", link(name)) for name in dict.fromkeys(names) if name]


def key_cell(names: Iterable[str]) -> Cell:
    return Cell("", keys=keys(names))
