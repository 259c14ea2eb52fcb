"""What a set of graded completions says: one value per problem, its mean, its interval, its distance to another set.

Shapes: P problems, K samples per problem. The unit is the row of the prompt table: samples of one row are averaged
first; intervals are over training seeds and problems (`selfdistill.seeds`). A density (occurrences per 1,000 tokens)
is a ratio of two means, so a problem enters it by its linearised value

    v_i = R + (1000 c_i - R t_i) / mean(t)          R = 1000 sum(c) / sum(t)

whose mean is exactly the pooled density R, and whose variance is that of the ratio to first order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selfdistill.artifacts.store import ROOT, Artifact
from selfdistill.artifacts.tables import read_frame
from selfdistill.artifacts.verification import check_file, check_manifest
from selfdistill.schema.errors import UserError
from selfdistill.seeds import Runs, Uncertain, difference, mean
from selfdistill.statistics import avg_at_k, pass_at_k

#: Every family together.
ALL = "all"
#: Columns of a frame beside the counts: score (share correct), pass (pass@k), length (tokens), truncated (share).
SCORE, PASS, LENGTH, TRUNCATED = "score", "pass", "length", "truncated"
_SHARES, _SHARE = (SCORE, PASS, TRUNCATED), (0.0, 1.0)
_COUNT = (0.0, math.inf)
#: The paper's counting rule, summed over the lexicon.
EPISTEMIC = "substring_total"

_ROLLOUT_COLUMNS = ["step", "row_id", "sample", "family", "completion_tokens", "stop_reason", "outcome"]
_KEYS = ["step", "row_id", "sample"]


def density_of(column: str) -> str:
    """Metric name of the density that belongs to a column of counts."""
    return f"density:{column}"


DENSITY = density_of(EPISTEMIC)


@dataclass(frozen=True)
class Measurement:
    """One or more models (training seeds) on the same prompts; `frames` hold a row per problem, index row_id.

    `is_trained`: each frame is a training seed; else it is a base model, which no training seed varies.
    """

    frames: tuple[pd.DataFrame, ...]
    k: int
    is_trained: bool

    @property
    def families(self) -> list[str]:
        """The named families of its problems, sorted; empty when the data names none."""
        return sorted(set(self.frames[0]["family"]) - {""})

    def n(self, family: str = ALL) -> int:
        return len(_of_family(self.frames[0], family))

    def runs(self, metric: str, family: str = ALL, rows: pd.Index | None = None) -> Runs:
        """One value per seed and problem, [S, P]."""
        values_SP = [_values(_of_family(frame, family, rows), metric) for frame in self.frames]
        return Runs.of(values_SP, is_trained=self.is_trained, bounds=_SHARE if metric in _SHARES else _COUNT)

    def mean(self, metric: str, family: str = ALL) -> float:
        return float(self.runs(metric, family).per_problem.mean())

    def estimate(self, metric: str, family: str = ALL) -> Uncertain:
        return mean(self.runs(metric, family))

    def difference(self, other: Measurement, metric: str, family: str = ALL) -> Uncertain:
        """Mean of self - other over the problems that both have; UserError if there are none."""
        rows = self.frames[0].index.intersection(other.frames[0].index)
        if not len(_of_family(self.frames[0], family, rows)):
            raise UserError("two sets of completions that are compared share no problem: were their prompts replaced?")
        return difference(self.runs(metric, family, rows), other.runs(metric, family, rows))


def pooled(measurements: Sequence[Measurement]) -> Measurement:
    """Several training seeds as one measurement: their scores are averaged problem by problem."""
    first = measurements[0]
    for other in measurements[1:]:
        if other.k != first.k or not other.frames[0].index.equals(first.frames[0].index):
            raise UserError("seeds of one experiment were evaluated on different problems or numbers of samples.")
    return Measurement(tuple(frame for m in measurements for frame in m.frames), first.k, first.is_trained)


def measure(rollouts: str, epistemics: str) -> dict[int, Measurement]:
    """Measurements by step of an `evaluate` or `rollouts` artifact with its `epistemics` artifact (names)."""
    return _measure(open_artifact(rollouts).folder.resolve(), open_artifact(epistemics).folder.resolve())


@lru_cache(maxsize=256)
def _measure(rollouts: Path, epistemics: Path) -> dict[int, Measurement]:
    table = read_table(rollouts / "payload" / "rollouts.parquet", _ROLLOUT_COLUMNS)
    counts = read_table(epistemics / "payload" / "counts.parquet")
    words = [c for c in counts.columns if c.startswith(("substring", "word"))]
    joined = table.merge(counts[[*_KEYS, *words]], on=_KEYS, how="outer", indicator="side")
    if len(joined) != len(table) or not (joined["side"] == "both").all():
        raise UserError(f"{epistemics} does not count the completions of {rollouts}: discard it and run again.")
    groups = joined.groupby("step", sort=True)
    return {int(step): _measurement(group, words, rollouts, is_trained=step > 0) for step, group in groups}


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A table in the payload of a finished artifact; UserError when it has changed, or it or a column is missing."""
    check_file(path.parents[1], f"payload/{path.name}")
    return read_frame(path, columns)


def open_artifact(name: str) -> Artifact:
    """A finished artifact by its name in a plan; UserError when it is not finished."""
    return _open((ROOT / name).absolute(), ROOT / name)


@cache
def _open(place: Path, folder: Path) -> Artifact:
    """`place` keeps apart what different working directories call by one name."""
    artifact = Artifact.open(folder)
    _ = artifact.manifest
    check_manifest(artifact)
    return artifact


def _measurement(table: pd.DataFrame, words: list[str], source: Path, *, is_trained: bool) -> Measurement:
    table = table.sort_values(["row_id", "sample"])
    per_problem = table.groupby("row_id", sort=True)
    samples = per_problem.size()
    k = int(samples.iloc[0])
    if (samples != k).any():
        raise UserError(f"{source}: some problems have {samples.min()} completions and others {samples.max()}.")
    correct_PK = (table["outcome"] == "correct").to_numpy(dtype=float).reshape(-1, k)
    frame = pd.DataFrame({"family": per_problem["family"].first()})
    frame[SCORE] = avg_at_k(correct_PK)
    frame[PASS] = pass_at_k(correct_PK, k)
    frame[LENGTH] = per_problem["completion_tokens"].mean()
    frame[TRUNCATED] = (table["stop_reason"] == "length").to_numpy(dtype=float).reshape(-1, k).mean(axis=1)
    return Measurement((frame.join(per_problem[words].mean()),), k, is_trained)


def _of_family(frame: pd.DataFrame, family: str, rows: Iterable[int] | None = None) -> pd.DataFrame:
    chosen = frame if rows is None else frame.loc[rows]
    return chosen if family == ALL else chosen[chosen["family"] == family]


def _values(frame: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    if not metric.startswith("density:"):
        return frame[metric].to_numpy(dtype=float)
    counts = frame[metric.removeprefix("density:")].to_numpy(dtype=float)
    tokens = frame[LENGTH].to_numpy(dtype=float)
    if not tokens.sum():
        return np.zeros(len(frame))
    ratio = 1000.0 * counts.sum() / tokens.sum()
    return ratio + (1000.0 * counts - ratio * tokens) / tokens.mean()
