"""What a training run wrote while it ran: the scalars of metrics.jsonl by step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selfdistill.schema.errors import UserError
from selfdistill.views.measures import open_artifact

#: Names that the trainer gives its scalars.
REWARD, TOKENS, WORDS = "reward_mean", "completion_tokens_mean", "epistemic_count_mean"
#: Steps at the end over which the training score is averaged.
FINAL_STEPS = 10


def curves(train: str) -> pd.DataFrame:
    """Scalars of a run, index step; a step written twice (after a resume) counts as it was written last."""
    return _curves(open_artifact(train).metrics.absolute())


@cache
def _curves(path: Path) -> pd.DataFrame:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
        by_step = {int(record["step"]): _scalars(record) for record in records}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: discard the run and train again.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): discard the run and train again.") from None
    if not by_step:
        raise UserError(f"{path} holds no step: discard the run and train again.")
    return pd.DataFrame.from_dict(by_step, orient="index").sort_index().rename_axis("step")


def final_values(trains: Sequence[str], column: str) -> NDArray[np.float64] | None:
    """The last FINAL_STEPS values of a scalar, averaged over runs step by step.

    None for a method that writes no such scalar (SFT has no reward). The shortest run decides how many there are.
    """
    tables = [curves(name) for name in trains]
    if any(column not in table or table[column].dropna().empty for table in tables):
        return None
    values = [table[column].dropna().to_numpy()[-FINAL_STEPS:] for table in tables]
    shortest = min(len(v) for v in values)
    return np.mean([v[-shortest:] for v in values], axis=0)


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    numbers = {k: v for k, v in record.items() if isinstance(v, Real) and not isinstance(v, bool) and k != "step"}
    return {name: float(value) for name, value in numbers.items()}
