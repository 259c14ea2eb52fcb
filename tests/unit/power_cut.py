"""What a power cut would lose: files and folders that changed after they were last flushed to disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


class Disk:
    """Records every flush; `before_rename` is called before a file or folder gets its final name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._flushed: dict[int, tuple[int, int]] = {}
        self.before_rename: Callable[[Path], None] = lambda target: None
        fsync, replace = os.fsync, os.replace

        def recorded_fsync(descriptor: int) -> None:
            fsync(descriptor)
            found = os.fstat(descriptor)
            self._flushed[found.st_ino] = (found.st_size, found.st_mtime_ns)

        def recorded_replace(source: Path, target: Path) -> None:
            self.before_rename(Path(target))
            replace(source, target)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "replace", recorded_replace)

    def lost(self, *paths: Path) -> list[Path]:
        """Of these files and folders and everything in them: what is not on disk as it is now."""
        everything = [found for path in paths for found in (path, *path.rglob("*"))]
        return [path for path in everything if not self._is_on_disk(path)]

    def _is_on_disk(self, path: Path) -> bool:
        found = path.stat()
        return self._flushed.get(found.st_ino) == (found.st_size, found.st_mtime_ns)
