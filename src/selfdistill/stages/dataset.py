"""Problem table from an external or procedural source: mapped, deduplicated, compared with evaluation problems.

Problems of the inputs `exclude.*` are dropped. Problems that are near duplicates of those of the inputs `compare.*` are
listed in near_duplicates.parquet, pair by pair, and dropped where the spec says so.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfdistill.artifacts.tables import NEAR_DUPLICATES, problem_columns, read_rows, write_rows
from selfdistill.assets import Assets
from selfdistill.contamination import find_pairs
from selfdistill.run.job import Job, in_words
from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import Expectation, LoadedSource, NearDuplicates
from selfdistill.schema.stages import DatasetSpec
from selfdistill.sources import stream_problems
from selfdistill.sources.file import KEPT
from selfdistill.sources.loaded import file_digests
from selfdistill.sources.selection import Problem, Repeats, select


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(DatasetSpec)
    counts: Counter[str] = Counter()
    repeats = Repeats()
    problems = select(repeats.watch(stream_problems(spec.source, counts)), spec, _excluded(job), counts)
    kept = {name: counts.pop(reason, 0) for reason, name in KEPT.items()}
    if spec.expect is not None:
        _check_counts(job.artifact.name, spec.expect, repeats)
    if isinstance(spec.source, LoadedSource) and spec.source.pin.sha256 is None:
        place = Assets.here().dataset_place(spec.source.pin, spec.source.files)
        job.notes["source_files"] = file_digests(spec.source, place)
    compared: dict[str, Any] = {}
    if spec.near is not None:
        problems, compared = _compare(job, problems, spec.near, counts)
    if not problems:
        raise UserError(f"{job.artifact.name}: no problem is left. Dropped: {dict(counts)}")
    made = {"source": spec.slug({})}
    problems = [{"system": None, **problem, **made, "row_id": index} for index, problem in enumerate(problems)]
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
    job.tee.print(
        f"{summary['problems']} problems, {summary['distinct']} distinct; dropped: {in_words(summary['dropped'])}"
    )
    return summary


def _excluded(job: Job) -> set[str]:
    """Identities of the problems of the inputs `exclude.*`."""
    return {
        row["problem_id"]
        for role, other in job.artifact.inputs()
        if role.startswith("exclude.")
        for row in read_rows(other.payload / "problems.parquet", ["problem_id"])
    }


def _check_counts(name: str, expect: Expectation, repeats: Repeats) -> None:
    for field, found in (("rows", repeats.rows), ("distinct", repeats.distinct)):
        wanted = getattr(expect, field)
        if wanted is not None and not wanted[0] <= found <= wanted[1]:
            raise UserError(
                f"{name}: expect.{field}: the source has {found}, but {wanted[0]} to {wanted[1]} were expected: it is "
                "another file, or its fields are mapped wrongly. Fix the source, or change `expect` of the data set."
            )


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
    job.tee.print(f"duplicates in compared data sets, exact and near ({near.threshold:g} and up): {in_words(compared)}")
    return kept, {"compared": compared}
