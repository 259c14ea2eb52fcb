"""Going on with a finished training: a run of more steps starts from the last state of a sealed one.

The key of a run does not say how it came to be, so this is done only where the result is the one that a run of all its
steps has: the specs differ in nothing but the number of steps (and the interval of checkpoints), and nothing in the
steps that are taken over depended on how many would follow. The sealed run must have kept its last state
(`keep_last_state` in config/runtime.yaml).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from selfdistill.artifacts.store import Artifact
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import TrainSpec

#: In provenance, and the file beside the state that was taken over: which run, and after which step.
CONTINUED = "continued_from"
_MAY_DIFFER = ("steps", "checkpoint_every")


def shorter_runs(planned: dict[str, Any], root: Path) -> list[Artifact]:
    """Sealed trainings whose frozen spec is the planned one with fewer steps, the longest first.

    One whose spec is lost or damaged is passed over: `verify` names it, and no other training needs it.
    """
    found = []
    for folder in sorted((root / "train").glob("*")) if planned["stage"] == "train" else ():
        with suppress(UserError):
            artifact = Artifact.open(folder)
            if artifact.is_sealed and _without_steps(artifact.frozen_spec) == _without_steps(planned):
                found.append(artifact)
    found = [artifact for artifact in found if _steps(artifact.frozen_spec) < _steps(planned)]
    return sorted(found, key=lambda artifact: -_steps(artifact.frozen_spec))


def obstacle(spec: TrainSpec, shorter: Artifact) -> str | None:
    """Why a run does not continue from a shorter one; None if it does."""
    steps = _steps(shorter.frozen_spec)
    if spec.optimiser.schedule != "constant":
        return f"optimiser.schedule = {spec.optimiser.schedule} follows the number of steps, so other rates were used"
    if spec.evaluation is not None and steps % spec.evaluation.every_steps:
        return f"step {steps} was evaluated only because it was the last (evaluation.every_steps)"
    kept = set(shorter.spec(TrainSpec).checkpoint_steps)
    missing = [step for step in spec.checkpoint_steps if step <= steps and step not in kept]
    if missing:
        return f"it has no checkpoint of step {missing[0]} (checkpoint_every)"
    if not last_state(shorter).is_dir():
        return "its last state was not kept (keep_last_state in config/runtime.yaml)"
    return None


def last_state(artifact: Artifact) -> Path:
    """The state after the last step of a sealed training, if it was kept."""
    return artifact.last_state / f"step-{_steps(artifact.frozen_spec)}"


def start_of(planned: dict[str, Any], root: Path) -> str:
    """Whether a planned training continues from a sealed one, in a sentence; empty where none comes into question."""
    shorter = shorter_runs(planned, root)
    spec = TrainSpec.model_validate(planned["params"]) if shorter else None
    for artifact in shorter:
        if obstacle(spec, artifact) is None:
            return f"continues from {artifact.name}, after step {_steps(artifact.frozen_spec)}."
    return f"is trained from step 1, not on from {shorter[0].name}: {obstacle(spec, shorter[0])}." if shorter else ""


def _steps(frozen_spec: dict[str, Any]) -> int:
    return frozen_spec["params"]["steps"]


def _without_steps(frozen_spec: dict[str, Any]) -> dict[str, Any]:
    params = {name: value for name, value in frozen_spec["params"].items() if name not in _MAY_DIFFER}
    return frozen_spec | {"params": params}
