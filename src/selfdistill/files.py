"""Files and their digests: atomic writes, canonical JSON, artifact keys.

A reader of a file written here sees the old content or the new one, never a part of it. Two equal specs give the
same bytes on every machine and under every Python version; anything without a stable form (NaN, sets, objects, keys
that are not strings) raises instead of hashing by luck.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

KEY_LENGTH = 12
_CHUNK_BYTES = 1 << 20


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write to a temporary sibling, flush to disk, rename over the target.

    Flushing takes milliseconds; `durable=False` leaves it out for what can be made again at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = f"{path.parent}/.{path.name}.{secrets.token_hex(6)}"
    try:
        with open(partial, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_if_changed(path: Path, text: str) -> bool:
    """Leave a file with the same content untouched (its time stamp drives reruns); True if written."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_atomically(path, text)
    return True


def pretty_json(value: Any) -> str:
    """The form of JSON files that people open: sorted, indented, with a final newline."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, UTF-8; raises TypeError or ValueError for what has no stable form."""
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key_of(spec: dict[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of a spec's canonical JSON."""
    return sha256_text(canonical_json(spec))[:KEY_LENGTH]


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path}: key {key!r} is not a string")
            _check(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {value} has no stable form")
    elif not (value is None or isinstance(value, (str, int, bool))):
        raise TypeError(f"{path}: {type(value).__name__} has no stable form")
