"""Moving what an archive holds into the project, once all of it is known to be right."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from selfdistill.artifacts import trash
from selfdistill.artifacts.lock import hold_if_idle
from selfdistill.artifacts.running import refuse_during_workflow, refuse_running
from selfdistill.artifacts.store import Artifact, find
from selfdistill.files import remove, sync_tree
from selfdistill.plan.made_views import record_of
from selfdistill.schema.errors import UserError


@dataclass
class Imported:
    """What an import did, by name."""

    added: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def refuse_conflicts(artifacts: Sequence[Artifact], root: Path) -> None:
    """UserError where an import would replace a result, or what something is computing or about to read."""
    refuse_during_workflow()
    for artifact in artifacts:
        here = _here(artifact, root)
        if here.folder.is_symlink() or (here.folder.exists() and not here.folder.is_dir()):
            raise UserError(
                f"{here.folder} is a link or a file: move it away, then import again. Nothing was imported."
            )
        if here.is_sealed and here.manifest_path.read_bytes() != artifact.manifest_path.read_bytes():
            raise UserError(
                f"{artifact.name} is already here with other content. To replace it: selfdistill discard "
                f"{artifact.id} --yes. Nothing was imported."
            )
    refuse_running(here for artifact in artifacts if not (here := _here(artifact, root)).is_sealed)


def place(artifacts: Sequence[Artifact], root: Path, imported: Imported) -> None:
    """Move artifacts into the project, unless they are there; unfinished ones that are in the way go to the trash."""
    removal = trash.new_removal("import", root)
    for artifact in artifacts:
        here = _here(artifact, root)
        if here.is_sealed:
            imported.present.append(artifact.name)
            continue
        sync_tree(artifact.folder)
        with _out_of_the_way(here, removal):
            (root / artifact.name).parent.mkdir(parents=True, exist_ok=True)
            artifact.folder.rename(root / artifact.name)
        imported.added.append(artifact.name)


@contextmanager
def _out_of_the_way(here: Artifact, removal: trash.Removal) -> Iterator[None]:
    """Hold the lock of an unfinished artifact, and move it to the trash; one that was only planned is removed."""
    if not here.folder.exists():
        yield
        return
    with hold_if_idle(here.folder) as is_idle:
        if not is_idle:  # Its job began after `refuse_conflicts`.
            raise UserError(f"{here.name} is being computed now. Wait for its job, or stop it, then import again.")
        if trash.is_only_planned(here.folder):
            remove(here.folder)
        else:
            trash.move_to_trash(removal, [here.folder], here.root)
        yield


def _here(artifact: Artifact, root: Path) -> Artifact:
    """The artifact of this id in the project, or the place for it."""
    return Artifact(find(artifact.id, root) or root / artifact.name)


def place_target(staging: Path, target: Path, plan: Path, imported: Imported) -> None:
    """Move a table or page into the project after its plan and its record; one with other content here stays."""
    if target.exists() and not (target.is_file() and target.read_bytes() == (staging / target).read_bytes()):
        imported.kept.append(str(target))
        return
    for path in (plan, record_of(plan, str(target)), target):
        if (staging / path).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / path, path)
    imported.targets.append(str(target))
