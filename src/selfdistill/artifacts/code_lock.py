"""stages.lock.json: every change of a stage's code needs a decision: do results stay the same, or is VERSION raised?

Keys hold the VERSION of a stage and nothing of its code, so that a reformatted line retrains nothing. For each stage
the lock holds the version, a digest of the code behind it (`source_digest`) and the list of all decisions so far, the
oldest first. When the digest changes, a test fails until someone has recorded a decision with a reason for the review.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.artifacts.source_digest import DIGEST_LENGTH, source_digests
from selfdistill.files import canonical_json, pretty_json, sha256_text, write_atomically
from selfdistill.schema.errors import UserError, unknown
from selfdistill.schema.methods import shipped_methods
from selfdistill.schema.stages import STAGES

LOCK_FILE = Path("stages.lock.json")
PACKAGE = Path(__file__).parents[1]
DECISIONS = ("bump", "same-results")
#: Machine settings never affect results, so they are not part of any stage's code.
_MACHINE = "selfdistill.schema.runtime"
#: Modules that a module runs as processes of their own, which no import statement shows.
_PROCESSES = {
    "selfdistill.grading.pool": ("selfdistill.grading.worker", "selfdistill.grading.function_worker"),
}
#: Stands for every stage that has something to decide.
ALL_STAGES = "all"


def compute(package: Path = PACKAGE, versions: Mapping[str, int] | None = None) -> dict[str, dict[str, Any]]:
    """Stage -> {version, digest, sources} of the code as it is. Raises UserError for a module that does not exist."""
    return {stage: _state(package, stage, version) for stage, version in _versions(versions).items()}


def check(lock_file: Path = LOCK_FILE, package: Path = PACKAGE, versions: Mapping[str, int] | None = None) -> list[str]:
    """One line for each stage that needs a decision; empty when there is none."""
    lock = _read(lock_file)
    states = compute(package, versions)
    problems = [_problem(stage, state, lock.get(stage)) for stage, state in states.items()]
    left_over = sorted(lock.keys() - states.keys())
    problems += [f"{lock_file}: there is no stage `{stage}`; remove its entry." for stage in left_over]
    return [problem for problem in problems if problem]


def update(
    stage: str,
    decision: str,
    reason: str,
    lock_file: Path = LOCK_FILE,
    package: Path = PACKAGE,
    versions: Mapping[str, int] | None = None,
) -> list[str]:
    """Record a decision about one stage, or about all that need one; returns their names.

    Raises UserError for an unknown stage or decision, a missing reason, and a decision that contradicts VERSION.
    """
    lock, states = _read(lock_file), compute(package, versions)
    if decision not in DECISIONS:
        raise unknown("decision", decision, DECISIONS)
    if not reason.strip():
        raise UserError("a decision needs a reason: one sentence for the review (--reason).")
    if stage not in states and stage != ALL_STAGES:
        raise unknown("stage", stage, [*states, ALL_STAGES])
    chosen = [stage] if stage != ALL_STAGES else [s for s in states if _problem(s, states[s], lock.get(s))]
    for name in chosen:
        lock[name] = _decided(name, decision, reason.strip(), states[name], lock.get(name))
    write_atomically(lock_file, pretty_json(lock))
    return chosen


def _state(package: Path, stage: str, version: int) -> dict[str, Any]:
    try:
        roots = [f"{package.name}.stages.{stage}", *_loaded_by_name(package, stage)]
        sources = source_digests(package, *roots)
        processes = [name for module in sources.keys() & _PROCESSES.keys() for name in _PROCESSES[module]]
        if processes:
            sources = source_digests(package, *roots, *sorted(processes))
        sources.pop(_MACHINE, None)
    except FileNotFoundError as error:
        raise UserError(f"stage `{stage}`: {error} does not exist, or cannot be found from its import.") from None
    return {"version": version, "digest": sha256_text(canonical_json(sources))[:DIGEST_LENGTH], "sources": sources}


def _loaded_by_name(package: Path, stage: str) -> list[str]:
    """Modules that an import statement does not show: the training classes of the shipped methods."""
    if stage != "train":
        return []
    modules = [method.training.partition(":")[0] for method in shipped_methods()]
    return [module for module in modules if module.partition(".")[0] == package.name]


def _problem(stage: str, state: dict[str, Any], entry: dict[str, Any] | None) -> str:
    """The decision that a stage needs, as a message; empty if it needs none."""
    record = f'selfdistill lock {stage} --bump --reason "..."'
    if entry is None:
        return f"{stage}: not in {LOCK_FILE} yet. Record it: {record}"
    if state["version"] < entry["version"]:
        return f"{stage}: VERSION {state['version']} is lower than the recorded {entry['version']}. Versions only grow."
    if state["version"] > entry["version"]:
        return f"{stage}: VERSION was raised to {state['version']}. Record why: {record}"
    if state["digest"] == entry["digest"]:
        return ""
    old, new = entry["sources"], state["sources"]
    moved = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return (
        f"{stage}: its code changed ({', '.join(moved)}). If results stay the same: selfdistill lock {stage} "
        f'--same-results --reason "...". If they change, raise VERSION in schema/stages.py, then: {record}'
    )


def _decided(
    stage: str, decision: str, reason: str, state: dict[str, Any], entry: dict[str, Any] | None
) -> dict[str, Any]:
    """The new entry of a stage: its present state, and the decision added to those made before."""
    known = entry or {"version": 0, "decisions": []}
    is_raised = state["version"] > known["version"]
    if decision == "bump" and not is_raised:
        raise UserError(f"{stage}: raise VERSION above {known['version']} in schema/stages.py first, then record it.")
    if decision == "same-results" and is_raised and entry:
        raise UserError(f"{stage}: VERSION was raised to {state['version']}, which says that results change: --bump.")
    made = {"version": state["version"], "digest": state["digest"], "decision": decision, "reason": reason}
    return state | {"decisions": [*known["decisions"], made]}


def _versions(versions: Mapping[str, int] | None) -> Mapping[str, int]:
    return {stage: spec.VERSION for stage, spec in STAGES.items()} if versions is None else versions


def _read(lock_file: Path) -> dict[str, Any]:
    if not lock_file.is_file():
        return {}
    try:
        return json.loads(lock_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{lock_file} is not JSON: {error}") from None
