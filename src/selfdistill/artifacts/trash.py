"""The trash: what gc and discard remove can be put back until it is removed for good.

    results/artifacts/.trash/<time>/trash.json     when, by which command, and what
    results/artifacts/.trash/<time>/<stage>/...    files and folders under their old paths

Moving is a rename on the same file system, so it takes no time and no space.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from selfdistill.artifacts.lock import hold_if_idle
from selfdistill.artifacts.manifest import read_manifest
from selfdistill.artifacts.running import is_running
from selfdistill.artifacts.store import ROOT
from selfdistill.files import pretty_json, remove, sha256_file, write_atomically
from selfdistill.schema.errors import UserError

TRASH = ".trash"
_RECORD = "trash.json"
#: What a folder holds of which nothing was computed.
_OF_A_PLAN = re.compile(r"spec\.json|names\.json|refused\.json|\.lock.*")


@dataclass(frozen=True)
class Removal:
    """What one command moved to the trash: paths relative to the artifacts, in the order in which they went."""

    folder: Path
    when: datetime
    command: str
    paths: list[str]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def artifacts(self) -> list[str]:
        """`stage/slug-key` of what was moved."""
        return list(dict.fromkeys("/".join(path.split("/")[:2]) for path in self.paths))


def is_only_planned(folder: Path) -> bool:
    """Whether nothing was ever computed for an artifact."""
    return all(_OF_A_PLAN.fullmatch(path.name) for path in folder.iterdir())


def new_removal(command: str, root: Path = ROOT) -> Removal:
    """An empty removal, named by the time."""
    now = datetime.now(UTC)
    name = now.strftime("%Y%m%dT%H%M%S.%f")
    return Removal(root / TRASH / name, now, command, [])


def move_to_trash(removal: Removal, paths: Sequence[Path], root: Path = ROOT) -> None:
    """Move files and folders (links themselves, not what they lead to). It is on record before it is moved.

    UserError, before anything is moved, for what lies on another file system (a link leads there).
    """
    found = [path for path in paths if _is_there(path)]
    for path in found:
        if path.parent.stat().st_dev != root.stat().st_dev:
            raise UserError(
                f"{path.parent} lies on another file system than {root}, so it cannot go to the trash: move it to that "
                "one, try again."
            )
    removal.paths.extend(path.relative_to(root).as_posix() for path in found)
    record = {"when": removal.when.isoformat(), "command": removal.command, "paths": removal.paths}
    write_atomically(removal.folder / _RECORD, pretty_json(record))
    for path in found:
        target = removal.folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def removals(root: Path = ROOT) -> list[Removal]:
    """What the trash holds, the oldest first."""
    found = []
    for path in sorted((root / TRASH).glob(f"*/{_RECORD}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            when = datetime.fromisoformat(record["when"])
            found.append(Removal(path.parent, when, record["command"], [str(p) for p in record["paths"]]))
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{path} is damaged. Put back by hand what lies beside it.") from None
    return found


def put_back(removal: Removal, root: Path = ROOT) -> tuple[list[str], dict[str, str]]:
    """Put a removal back, artifact by artifact: (names that were put back, names that stay in the trash -> why).

    A removal or an undo that was killed half-way is completed.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for path in removal.paths:
        groups["/".join(path.split("/")[:2])].append(path)
    left = {name for name, paths in groups.items() if any(_is_there(removal.folder / path) for path in paths)}
    groups = {name: paths for name, paths in groups.items() if name in left}
    reasons = {name: _put_back_artifact(removal, name, paths, root) for name, paths in groups.items()}
    kept = {name: reason for name, reason in reasons.items() if reason}
    if not kept:
        remove(removal.folder)
    return [name for name in groups if name not in kept], kept


def _put_back_artifact(removal: Removal, name: str, paths: Sequence[str], root: Path) -> str:
    """Put back what was removed of one artifact, while no job of it can start; otherwise why not."""
    here = root / name
    has_folder = here.is_dir() and not here.is_symlink()
    if has_folder and is_running(here):
        return "is being computed now"
    with hold_if_idle(here) if has_folder else nullcontext(True) as is_idle:
        if not is_idle:
            return "is being computed now"
        moved = [path for path in paths if _is_there(removal.folder / path)]
        if name in moved and has_folder and is_only_planned(here):
            remove(here)
        if any(_is_there(root / path) for path in moved):
            return "was made again since"
        if len(moved) < len(paths) and not _fits_what_stayed(removal, name, root):
            return "has other files since, or was removed in several steps, of which the last ones must be undone first"
        for path in reversed(moved):  # A manifest went first, so it comes last: never without its files.
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (removal.folder / path).rename(root / path)
    return ""


def _fits_what_stayed(removal: Removal, name: str, root: Path) -> bool:
    """Whether a manifest in the trash still vouches for all its files, of which some were never moved."""
    manifest = removal.folder / name / "manifest.json"
    if not manifest.is_file():
        return True
    for file, entry in read_manifest(manifest, name[-12:])["files"].items():
        found = [path for folder in (removal.folder, root) if (path := folder / name / file).is_file()]
        if not found or found[0].stat().st_size != entry["size"] or sha256_file(found[0]) != entry["sha256"]:
            return False
    return True


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def empty(root: Path = ROOT, *, days: float) -> list[Removal]:
    """Remove for good what has been in the trash for so many days; returns it."""
    oldest = datetime.now(UTC) - timedelta(days=days)
    old = [removal for removal in removals(root) if removal.when <= oldest]
    for removal in old:
        remove(removal.folder)
    return old


def in_trash(names: Iterable[str], root: Path = ROOT) -> dict[str, Removal]:
    """Of these artifacts those that lie in the trash, each with its latest removal."""
    wanted = set(names)
    return {name: removal for removal in removals(root) for name in removal.artifacts if name in wanted}
