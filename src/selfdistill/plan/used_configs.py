"""Which settings results were planned with: config/config.yaml alone, and every set of files merged over it.

gc asks it, so that a result is not unused because it was made with `--configfile`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfdistill.files import with_digest, write_if_changed
from selfdistill.plan.config_files import ConfigFiles
from selfdistill.plan.settings import CONFIG_FILE
from selfdistill.schema.errors import UserError

FILE = Path("results/plans/configs.json")


@dataclass(frozen=True)
class UsedConfig:
    """Files that were merged over config/config.yaml, values of the command line, and the day of the last plan."""

    overlays: tuple[str, ...]
    values: dict[str, Any]
    last: str

    @classmethod
    def alone(cls) -> UsedConfig:
        """config/config.yaml with nothing merged over it."""
        return cls((), {}, "")

    @property
    def missing(self) -> list[str]:
        """Files that do not exist any more."""
        return [path for path in self.overlays if not Path(path).is_file()]

    def __str__(self) -> str:
        parts = [*self.overlays, *(f"--config {name}=..." for name in self.values)]
        return f"{', '.join(parts)} (last planned {self.last})" if parts else CONFIG_FILE


def read_used_configs() -> list[UsedConfig]:
    """Every set of settings beside config/config.yaml alone; UserError for a damaged record."""
    try:
        text = FILE.read_text(encoding="utf-8")
        found = json.loads(text)
        if isinstance(found, dict):  # Before there was a digest it was the list alone.
            found = found["configs"]
            if text != with_digest("configs", found):
                raise ValueError
        return [UsedConfig(tuple(entry["overlays"]), dict(entry["values"]), str(entry["last"])) for entry in found]
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{FILE} is damaged, so nobody knows which settings files are in use: move it away.") from None


def check_used_configs() -> Iterator[str]:
    """What is wrong with the record of settings that were used."""
    try:
        read_used_configs()
    except UserError as error:
        yield str(error)


def record_used_config(files: ConfigFiles) -> None:
    """Remember the settings of this plan, if they are more than config/config.yaml."""
    if not files.overlays and not files.values:
        return
    used = UsedConfig(tuple(files.overlays), files.values, datetime.now(UTC).date().isoformat())
    others = [u for u in read_used_configs() if (u.overlays, u.values) != (used.overlays, used.values)]
    entries = [{"overlays": list(u.overlays), "values": u.values, "last": u.last} for u in [*others, used]]
    write_if_changed(FILE, with_digest("configs", entries))
