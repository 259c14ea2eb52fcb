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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from selfdistill.artifacts.store import ROOT
from selfdistill.files import pretty_json, remove, write_atomically
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
    """Move files and folders (links themselves, not what they lead to). It is on record before it is moved."""
    found = [path for path in paths if path.exists() or path.is_symlink()]
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


def put_back(removal: Removal, root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Put a removal back, artifact by artifact; (names put back, names that exist again and stay in the trash)."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path in removal.paths:
        groups["/".join(path.split("/")[:2])].append(path)
    restored, kept = [], []
    for name, paths in groups.items():
        here = root / name
        if name in paths and here.is_dir() and not here.is_symlink() and is_only_planned(here):
            remove(here)
        if any((root / path).exists() for path in paths):
            kept.append(name)
            continue
        for path in reversed(paths):  # A manifest went first, so it comes last: never without its files.
            source = removal.folder / path
            if source.exists() or source.is_symlink():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                source.rename(root / path)
        restored.append(name)
    if not kept:
        remove(removal.folder)
    return restored, kept


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
