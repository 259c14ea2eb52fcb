"""Pinned artifacts: kept by gc and refused by discard, with what they were made from, and the reason why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from selfdistill.artifacts.provenance import now
from selfdistill.artifacts.store import ROOT
from selfdistill.files import pretty_json, write_atomically
from selfdistill.schema.errors import UserError


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
        return {identity: Pin(**pin) for identity, pin in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: fix it, or move it away and pin again.") from None


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
    write_atomically(_file(root), pretty_json({identity: asdict(pin) for identity, pin in pins.items()}))
