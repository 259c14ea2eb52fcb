"""Copy what a finished training leaves for one of more steps: checkpoints, rollouts, metrics, and its last state."""

from __future__ import annotations

import shutil
from pathlib import Path

from selfdistill.artifacts.continuation import CONTINUED, last_state, obstacle, shorter_runs
from selfdistill.artifacts.store import Artifact, manifest_digest
from selfdistill.files import move_into_place, pretty_json, read_json, sha256_file
from selfdistill.run.job import Job
from selfdistill.schema.stages import TrainSpec
from selfdistill.training.state import damage, is_sharded


def continue_run(job: Job) -> None:
    """Begin with the last state of a sealed run of fewer steps, if there is one and the result is the same.

    A run that has begun continues from its own state. Either way the provenance of the attempt names the shorter run.
    """
    artifact = job.artifact
    marker = artifact.state / f"{CONTINUED}.json"
    if not any(artifact.state.glob("*")):
        spec = artifact.spec(TrainSpec)
        for shorter in shorter_runs(artifact.frozen_spec, artifact.root):
            reason = obstacle(spec, shorter) or _obstacle_here(job, shorter) or _copy(shorter, artifact, spec)
            if reason is None:
                job.tee.print(f"continues from {shorter.name}.")
                break
            job.tee.print(f"does not continue from {shorter.name}: {reason}.")
    if marker.is_file():
        job.notes[CONTINUED] = read_json(marker)


def _obstacle_here(job: Job, shorter: Artifact) -> str | None:
    """Why this machine cannot read the state of the shorter run."""
    state = last_state(shorter)
    if is_sharded(state) != (job.runtime.sharding != "none"):
        return f"its state was not saved with sharding: {job.runtime.sharding}"
    fault = damage(state)
    return None if fault is None else f"its last state is damaged ({fault})"


def _copy(shorter: Artifact, artifact: Artifact, spec: TrainSpec) -> str | None:
    """Copy the files of the steps that both runs have, each as the manifest vouches for it; the state comes last.

    Returns why nothing is taken over, if a file is damaged, or missing since an import left it out.
    """
    state = last_state(shorter)
    due = {f"step-{step}" for step in spec.checkpoint_steps}
    for name, entry in shorter.manifest["files"].items():
        parts = Path(name).parts
        if parts[:2] == ("payload", "checkpoints") and parts[2] not in due:
            continue
        if not (shorter.folder / name).is_file():
            return f"{name} is missing"
        target = artifact.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shorter.folder / name, target)
        if sha256_file(target) != entry["sha256"]:
            return f"{name} is damaged"
    partial = artifact.folder / ".state.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(state, partial / state.name)
    step = int(state.name.removeprefix("step-"))
    source = {"id": shorter.id, "name": shorter.name, "step": step, "manifest": manifest_digest(shorter)}
    (partial / f"{CONTINUED}.json").write_text(pretty_json(source))
    move_into_place(partial, artifact.state)
    return None
