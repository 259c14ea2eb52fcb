"""Files and their digests: atomic and durable writes, canonical JSON, artifact keys.

Atomic: a reader sees the old content or the new one, never a part of it. Durable: when a function here returns, content
and name are on disk and survive a power cut; only `durable=False` leaves that to the operating system.

Two equal specs give the same bytes on every machine and under every Python version. Anything without a stable form
(NaN, sets, objects, keys that are not strings) raises an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEY_LENGTH = 12


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk. OSError if the disk reports that it could not be written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder with everything in it."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    if not path.is_dir():
        sync(path)


def move_into_place(partial: Path, target: Path, *, durable: bool = True) -> None:
    """Give a finished file or folder its final name, on the same file system. An older one there is replaced."""
    if durable:
        sync_tree(partial)
    if target.is_dir():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)
    else:
        os.replace(partial, target)
    if durable:
        sync(target.parent)


@contextmanager
def replacing(path: Path, *, durable: bool = True, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; it becomes `path` when the block ends, and is removed after an error.

    `shared`: several processes may write `path` at the same time, so the name is unique. Otherwise it is always the
    same, and the next writer replaces what a killed one left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part" if shared else f".{path.name}.part")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        move_into_place(partial, path, durable=durable)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file, a folder with everything in it, or a link, never what it leads to. No error if it is missing."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        error.filename = str(path)  # It names a file without its folder.
        raise


def read_json(path: Path) -> Any:
    """The content of a JSON file. ValueError for one that is not JSON, not UTF-8, or nested too deeply."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file (text: UTF-8). Flushing takes milliseconds; many small files that can be made again go without."""
    with replacing(path, durable=durable, shared=True) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_if_changed(path: Path, text: str, *, durable: bool = True) -> bool:
    """Leave a file with the same content untouched (its time stamp drives reruns); True if written."""
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    write_atomically(path, text, durable=durable)
    return True


def pretty_json(value: Any) -> str:
    """The form of JSON files that people open: sorted, indented, with a final newline."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def with_digest(name: str, content: Any) -> str:
    """The text of a JSON file that has `content` under a name, and the digest by which damage to it is found."""
    return pretty_json({name: content, "sha256": sha256_text(canonical_json(content))})


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, UTF-8; raises TypeError or ValueError for what has no stable form."""
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key_of(spec: dict[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of a spec's canonical JSON."""
    return sha256_text(canonical_json(spec))[:KEY_LENGTH]


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
