"""The files that a config was merged from, and which of them a setting comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from selfdistill.plan.settings import CONFIG_FILE, depth_of, merge
from selfdistill.schema.errors import Keys
from selfdistill.schema.yaml_file import read_yaml

COMMAND_LINE = "--config"


class ConfigFiles:
    """config/config.yaml, the files merged over it, and values of the command line; later ones take precedence."""

    def __init__(self, overlays: Iterable[str | Path] = (), values: Mapping[str, Any] | None = None) -> None:
        self.overlays = [str(path) for path in overlays]
        self.values = dict(values or {})

    def merged(self) -> dict[str, Any]:
        return reduce(merge, self._contents().values())

    def source(self, keys: Keys) -> str:
        """The last file that has a setting, or that has more of the keys that lead to it than the others."""
        depths = {name: depth_of(keys, content) for name, content in self._contents().items()}
        return max(reversed(depths), key=depths.__getitem__, default=CONFIG_FILE)

    def _contents(self) -> dict[str, dict[str, Any]]:
        """Name -> content, lowest precedence first."""
        read = {path: read_yaml(Path(path)) for path in (CONFIG_FILE, *self.overlays) if Path(path).is_file()}
        return read | ({COMMAND_LINE: self.values} if self.values else {})
