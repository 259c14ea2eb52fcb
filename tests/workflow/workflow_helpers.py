"""Small things the scenarios share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TARGET = "results/ood/toy_grpo.csv"


def set_learning_rate(value: float) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["recipes"]["toy_grpo"].setdefault("optimiser", {})["learning_rate"] = value

    return change


def shown_files(page: Path, section: int) -> Iterator[tuple[str, str]]:
    """(name, content) of the files that a section shows: a name in backticks, a colon, an indented block."""
    text = page.read_text().split(f"## {section}.")[1].split("\n## ")[0]
    for match in re.finditer(r"^`([\w./]+)`:\n\n((?:    .*\n|\n)+)", text, re.MULTILINE):
        yield match[1], re.sub("^    ", "", match[2], flags=re.MULTILINE).rstrip("\n") + "\n"


def record_deepscaler(root: Path) -> None:
    """Write a digest of DeepScaleR's file into the asset lock, as `selfdistill assets fetch` does."""
    lock = root / "config/assets.lock.yaml"
    repo = "  repo: agentica-org/DeepScaleR-Preview-Dataset\n"
    assert repo in lock.read_text()
    lock.write_text(lock.read_text().replace(repo, f"{repo}  files: {{deepscaler.json: '{'0' * 64}'}}\n"))
