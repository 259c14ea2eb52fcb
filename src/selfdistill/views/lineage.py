"""Where the numbers come from: every artifact behind a report, and what each left out or cut without stopping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from selfdistill.artifacts.lineage import closure, last_attempt
from selfdistill.artifacts.store import Artifact
from selfdistill.schema.stages import STAGES
from selfdistill.views.measures import open_artifact
from selfdistill.views.study import curves

#: Parts of names that mark a number about something left out, cut or failed.
_SILENT = (
    "drop",
    "trunc",
    "unparsed",
    "unreadable",
    "timeout",
    "missing",
    "without",
    "skip",
    "exclude",
    "duplicate",
    "leaked",
)
_PER_STEP = ", mean over steps"
#: Shares that training writes of what it used; what it did not use is one minus that.
_COMPLEMENTS = {
    "demonstration_share": "share of completions without a demonstration",
    "usable_group_share": "share of groups without a learning signal",
}
#: Parts of names of shares, which are averaged over artifacts and not summed.
_SHARES = ("rate", "share", "fraction")


@dataclass(frozen=True)
class Origin:
    """One artifact as the provenance table shows it."""

    stage: str
    slug: str
    key: str
    href: str
    commit: str
    date: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class SilentCount:
    """A number that nobody would see otherwise, over all artifacts of a stage; `largest` is the worst of them."""

    stage: str
    name: str
    is_share: bool
    artifacts: int
    overall: float
    largest: float
    slug: str
    href: str


def ancestry(names: Iterable[str]) -> list[Artifact]:
    """The named artifacts and everything upstream, by stage in the order of the workflow, then by name."""
    stages = list(STAGES)
    return sorted(closure(map(open_artifact, names)), key=lambda a: (stages.index(a.stage), a.name))


def link(name: str) -> str:
    """Address of an artifact's manifest, relative to results/, where the report lies."""
    return f"artifacts/{name}/manifest.json"


def origin(artifact: Artifact) -> Origin:
    """What provenance.json says of the attempt that finished; dashes where there is none."""
    attempt = last_attempt(artifact.folder)
    return Origin(
        stage=artifact.stage,
        slug=artifact.slug,
        key=artifact.key,
        href=link(artifact.name),
        commit=(attempt.get("commit") or "–")[:10] + (" with changes" if attempt.get("dirty") else ""),
        date=(attempt.get("finished") or attempt.get("started") or "–")[:16].replace("T", " "),
        inputs=tuple(sorted(artifact.input_ids.values())),
    )


def silent_counts(artifacts: Iterable[Artifact]) -> list[SilentCount]:
    """Numbers of manifests' summaries and of runs' scalars whose names speak of something left out, by stage.

    Counts are summed over the artifacts of a stage; rates, and a run's scalars, are averaged.
    """
    found: dict[tuple[str, str], list[tuple[float, Artifact]]] = {}
    for artifact in artifacts:
        for name, value in _numbers(artifact):
            if any(part in name.lower() for part in _SILENT):
                found.setdefault((artifact.stage, name), []).append((value, artifact))
    return [_silent_count(stage, name, entries) for (stage, name), entries in found.items()]


def _silent_count(stage: str, name: str, entries: list[tuple[float, Artifact]]) -> SilentCount:
    values = [value for value, _ in entries]
    largest, worst = max(entries, key=lambda entry: entry[0])
    is_share = any(part in name for part in _SHARES)
    is_averaged = is_share or name.endswith(_PER_STEP)
    overall = sum(values) / (len(values) if is_averaged else 1)
    return SilentCount(stage, name, is_share, len({a.name for _, a in entries}), overall, largest, worst.slug,
                       link(worst.name))  # fmt: skip


def _numbers(artifact: Artifact) -> Iterator[tuple[str, float]]:
    """Every number that an artifact reports about itself; evaluated steps under one name."""
    summary = dict(_flat(artifact.summary))
    yield from ((re.sub(r"^step-\d+: ", "", name), value) for name, value in summary.items())
    if artifact.stage == "train":
        means = {name: float(value) for name, value in curves(artifact.name).mean().items()}
        means |= {text: 1.0 - means[name] for name, text in _COMPLEMENTS.items() if name in means}
        yield from ((f"{name}{_PER_STEP}", value) for name, value in means.items())
    if artifact.stage == "sft_data":
        yield "problems without a pair", summary["problems"] - summary["pairs"]


def _flat(summary: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in summary.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}: ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
