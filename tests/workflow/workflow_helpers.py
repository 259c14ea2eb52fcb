"""Small things the scenarios share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TARGET = "results/ood/toy_grpo.csv"


def set_learning_rate(value: float) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["recipes"]["toy_grpo"]["optimiser"]["learning_rate"] = value

    return change
