"""Pinned artifacts: kept by gc and refused by discard, with what they were made from, and the reason why.

results/pins.json   {"pins": {id: pin}, "sha256": digest}; older files are the pins alone, and cannot be checked
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from selfdistill.artifacts.provenance import now
from selfdistill.artifacts.store import ROOT, find
from selfdistill.files import with_digest, write_atomically
from selfdistill.schema.errors import UserError

_ID = re.compile(r"[a-z_]+/[0-9a-f]{12}")


@dataclass(frozen=True)
class Pin:
    """Why an artifact is kept, and since when."""

    name: str
    reason: str
    since: str


def _file(root: Path) -> Path:
    return root.parent / "pins.json"


def read_pins(root: Path = ROOT) -> dict[str, Pin]:
    """Id (`stage/key`) -> pin. UserError for a damaged file: without it gc would remove what is pinned."""
    path = _file(root)
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
        if "pins" in found and text != with_digest("pins", found["pins"]):
            raise ValueError
        pins = {identity: Pin(**pin) for identity, pin in found.get("pins", found).items()}
        if all(_ID.fullmatch(identity) for identity in pins):
            return pins
        raise ValueError
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged: fix it, or move it away and pin again.") from None


def check_pins(root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the pins: a damaged file, or an artifact that is pinned and gone."""
    try:
        for identity, entry in read_pins(root).items():
            if find(identity, root) is None:
                yield f"{entry.name} is pinned, but is not here: restore it, or selfdistill unpin {identity}"
    except UserError as error:
        yield str(error)


def pin(names: Mapping[str, str], reason: str, root: Path = ROOT) -> None:
    """Pin artifacts (id -> name); a pinned one gets the new reason."""
    since = now()
    _write({**read_pins(root), **{identity: Pin(name, reason, since) for identity, name in names.items()}}, root)


def unpin(ids: list[str], root: Path = ROOT) -> None:
    """Remove pins; UserError for an artifact that has none."""
    pins = read_pins(root)
    for identity in ids:
        if identity not in pins:
            raise UserError(f"{identity} is not pinned. `selfdistill pin` lists what is.")
        del pins[identity]
    _write(pins, root)


def _write(pins: Mapping[str, Pin], root: Path) -> None:
    write_atomically(_file(root), with_digest("pins", {identity: asdict(pin) for identity, pin in pins.items()}))
