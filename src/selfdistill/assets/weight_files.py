"""Is a folder the model that the lock names? What config.json says, and how many weights there are.

This tells other models apart, not changed weights of the same shape: only digests do, which the first fetch records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.schema.assets import LOCK_FILE, AssetEntry
from selfdistill.schema.errors import UserError

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100 << 20
#: The output layer: a copy of the embedding where the two are tied, and then not in every folder.
_HEAD = "lm_head.weight"


def check_architecture(name: str, entry: AssetEntry, folder: Path) -> None:
    """UserError in one line if config.json or the weights are not those of the model in the lock."""
    if not (entry.config or entry.parameters):
        return
    config = _read_json(folder / "config.json")
    for field, wanted in entry.config.items():
        if config.get(field) != wanted:
            found = config.get(field, "missing")
            raise _another(name, entry, f"{folder / 'config.json'}: {field} is {found}, but {wanted} in")
    if entry.parameters is not None:
        found = count_parameters(folder, is_tied=config.get("tie_word_embeddings") is True)
        if found != entry.parameters:
            problem = f"{folder}: its safetensors hold {found:,} weights, but {entry.parameters:,} in"
            raise _another(name, entry, problem)


def count_parameters(folder: Path, *, is_tied: bool) -> int:
    """Weights in the safetensors files that the library would load; only their headers are read."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _read_json(index).get("weight_map")
        names = {str(name) for name in listed.values()} if isinstance(listed, Mapping) else set()
        paths = [folder / name for name in sorted(names)]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    shapes: dict[str, list[int]] = {}
    for path in paths:
        shapes |= _shapes(path)
    return sum(math.prod(shape) for name, shape in shapes.items() if not (is_tied and name == _HEAD))


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(min(length, _MOST_HEADER_BYTES)))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        needed = _LENGTH_BYTES + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: [int(size) for size in entry["shape"]] for name, entry in tensors.items()}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder's index of weights names it.") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged, or not a safetensors file. Copy it again.") from None
    size = path.stat().st_size
    if size != needed:
        raise UserError(f"{path} has {size:,} bytes instead of {needed:,}: it was cut short. Copy it again.")
    return shapes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not JSON, or no mapping. Copy it again.")
    return content


def _another(name: str, entry: AssetEntry, problem: str) -> UserError:
    return UserError(
        f"{problem} {LOCK_FILE} for `{name}` ({entry.repo}): this is another model. Copy the right folder there, or "
        "give this one a name of its own: selfdistill assets add NAME FOLDER."
    )
