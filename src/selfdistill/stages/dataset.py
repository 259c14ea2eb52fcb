"""Problem table from an external or procedural source: mapped, deduplicated, compared with evaluation problems.

Problems of the inputs `exclude.*` are dropped. Problems that are near duplicates of those of the inputs `compare.*` are
listed in near_duplicates.parquet, pair by pair, and dropped where the spec says so.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from selfdistill.artifacts.tables import NEAR_DUPLICATES, problem_columns, read_rows, write_rows
from selfdistill.contamination import find_pairs
from selfdistill.prompts import problem_id
from selfdistill.run.job import Job
from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import Expectation, NearDuplicates, Part
from selfdistill.schema.stages import DatasetSpec
from selfdistill.sources import stream_problems
from selfdistill.sources.file import KEPT

Problem = dict[str, Any]


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(DatasetSpec)
    counts: Counter[str] = Counter()
    repeats = _Repeats()
    problems = list(_kept(job, spec, repeats.watch(stream_problems(spec.source, counts)), counts))
    kept = {name: counts.pop(reason, 0) for reason, name in KEPT.items()}
    if spec.expect is not None:
        _check_counts(job.artifact.name, spec.expect, repeats)
    if spec.split is not None:
        problems = _one_side(problems, spec.split, counts)
    compared: dict[str, Any] = {}
    if spec.near is not None:
        problems, compared = _compare(job, problems, spec.near, counts)
    if not problems:
        raise UserError(f"{job.artifact.name}: no problem is left. Dropped: {dict(counts)}")
    problems = [{"system": None, **problem, "row_id": index} for index, problem in enumerate(problems)]
    write_rows(job.artifact.payload / "problems.parquet", problems, problem_columns(problems))
    summary = {
        "problems": len(problems),
        "distinct": len({p["problem_id"] for p in problems}),
        "families": dict(sorted(Counter(p["family"] for p in problems).items())),
        "dropped": dict(sorted((+counts).items())),
        **kept,
    }
    if spec.expect is not None:
        summary["source"] = repeats.summary()
    summary |= compared
    job.tee.print(f"{summary['problems']} problems, {summary['distinct']} distinct; dropped: {summary['dropped']}")
    return summary


class _Repeats:
    """Counts of a source before anything was dropped: rows, distinct problems, problems with several answers."""

    def __init__(self) -> None:
        self.rows = 0
        self._copies: Counter[str] = Counter()
        self._answers: dict[str, str] = {}
        self._conflicts: set[str] = set()

    def watch(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """Yield the problems with their identity; a repeated text is not normalised again."""
        known: dict[bytes, str] = {}
        for problem in problems:
            text = hashlib.blake2b(problem["question"].encode("utf-8", "surrogatepass"), digest_size=16).digest()
            identity = known.get(text) or known.setdefault(text, problem_id(problem["question"]))
            self.rows += 1
            self._copies[identity] += 1
            if self._answers.setdefault(identity, problem["answer"]) != problem["answer"]:
                self._conflicts.add(identity)
            yield {**problem, "problem_id": identity}

    @property
    def distinct(self) -> int:
        return len(self._copies)

    def summary(self) -> dict[str, int]:
        copies = sorted(self._copies.values())
        return {
            "rows": self.rows,
            "distinct": self.distinct,
            "fewest_copies": copies[0],
            "median_copies": copies[len(copies) // 2],
            "most_copies": copies[-1],
            "with_several_answers": len(self._conflicts),
        }


def _kept(job: Job, spec: DatasetSpec, stream: Iterator[Problem], counts: Counter[str]) -> Iterator[Problem]:
    """Problems that are not excluded, not duplicates, and within the limit. Reads the whole stream."""
    excluded = {
        row["problem_id"]
        for role, other in job.artifact.inputs()
        if role.startswith("exclude.")
        for row in read_rows(other.payload / "problems.parquet", ["problem_id"])
    }
    seen: set[str] = set()
    source = spec.slug({})
    kept = 0
    for problem in stream:
        identity = problem["problem_id"]
        if identity in excluded:
            counts["in an excluded data set"] += 1
        elif spec.deduplicate and identity in seen:
            counts["duplicate"] += 1
        elif spec.limit is not None and kept >= spec.limit:
            counts["beyond the limit"] += 1
        else:
            kept += 1
            yield {**problem, "source": source}
        seen.add(identity)


def _check_counts(name: str, expect: Expectation, repeats: _Repeats) -> None:
    for field, found in (("rows", repeats.rows), ("distinct", repeats.distinct)):
        wanted = getattr(expect, field)
        if wanted is not None and not wanted[0] <= found <= wanted[1]:
            raise UserError(
                f"{name}: expect.{field}: the source has {found}, but {wanted[0]} to {wanted[1]} were expected: it is "
                "another file, or its fields are mapped wrongly. Fix the source, or change `expect` of the data set."
            )


def _one_side(problems: list[Problem], split: Part, counts: Counter[str]) -> list[Problem]:
    """Order distinct problems by a keyed hash of their identity; the first of them are the test side."""
    distinct = {problem["problem_id"] for problem in problems}
    order = sorted(distinct, key=lambda name: hashlib.sha256(f"{split.seed}:{name}".encode()).digest())
    test = set(order[: round(split.test_share * len(order))])
    kept = [problem for problem in problems if (problem["problem_id"] in test) == (split.part == "test")]
    counts["on the other side of the split"] += len(problems) - len(kept)
    return kept


def _compare(
    job: Job, problems: list[Problem], near: NearDuplicates, counts: Counter[str]
) -> tuple[list[Problem], dict[str, Any]]:
    """Write pairs of near duplicates in compared data sets; drop problems that are too similar, if the spec says so."""
    rows: list[dict[str, Any]] = []
    compared: dict[str, dict[str, int]] = {}
    dropped: set[str] = set()
    first = list({problem["problem_id"]: problem for problem in problems}.values())
    for role, other in job.artifact.inputs():
        if not role.startswith("compare."):
            continue
        second = read_rows(other.payload / "problems.parquet")
        pairs = find_pairs([p["question"] for p in first], [p["question"] for p in second], near.threshold)
        for pair in pairs:
            ours, theirs = first[pair.first], second[pair.second]
            is_dropped = near.drop_from is not None and pair.score >= near.drop_from
            dropped |= {ours["problem_id"]} if is_dropped else set()
            rows.append(
                {
                    "problem_id": ours["problem_id"],
                    "question": ours["question"],
                    "answer": ours["answer"],
                    "compared_with": theirs["source"],
                    "compared_problem_id": theirs["problem_id"],
                    "compared_question": theirs["question"],
                    "compared_answer": theirs["answer"],
                    "similarity": pair.score,
                    "is_exact": pair.is_exact,
                    "is_same_answer": ours["answer"] == theirs["answer"],
                    "is_dropped": is_dropped,
                }
            )
        found = compared.setdefault(str(second[0]["source"]), {"exact": 0, "near": 0})
        found["exact"] += sum(pair.is_exact for pair in pairs)
        found["near"] += sum(not pair.is_exact for pair in pairs)
    rows.sort(key=lambda row: (-row["similarity"], row["problem_id"], row["compared_problem_id"]))
    write_rows(job.artifact.payload / "near_duplicates.parquet", rows, NEAR_DUPLICATES)
    kept = [problem for problem in problems if problem["problem_id"] not in dropped]
    counts["near duplicate of a compared data set"] += len(problems) - len(kept)
    job.tee.print(f"duplicates in compared data sets, exact and near ({near.threshold:g} and up): {compared}")
    return kept, {"compared": compared}
