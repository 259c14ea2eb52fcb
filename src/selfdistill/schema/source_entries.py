"""Sources of a data set as they stand in config/config.yaml; planning pins them (schema/sources.py)."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from selfdistill.schema.sources import FileFields, LiveCodeBenchFields, LoadedFields


class AssetFile(FileFields):
    """A file of an asset in config/assets.lock.yaml."""

    kind: Literal["asset"] = "asset"
    asset: str = Field(min_length=1, description="Name in config/assets.lock.yaml or config/assets.local.yaml.")
    file: str | None = Field(
        None,
        min_length=1,
        description="File of that asset (of a folder of your own: file or folder); not needed if it has only one.",
    )
    split: str | None = Field(
        None, min_length=1, description="The split of a folder of your own; needed where it holds several."
    )


class LoadedEntry(LoadedFields):
    """What `datasets.load_dataset` reads (docs/data.md 2): an asset, or a repository of the hub at a commit."""

    kind: Literal["load_dataset"] = "load_dataset"
    asset: str | None = Field(
        None, min_length=1, description="Name of a folder or file of your own, or of a repository in the lock."
    )
    repo: str | None = Field(
        None, pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)?$", description="Repository of the hub: owner/name."
    )
    revision: str | None = Field(None, description="Its commit, 40 hex digits; a branch or a tag moves.")

    @model_validator(mode="after")
    def _is_pinned(self) -> LoadedEntry:
        if (self.asset is None) == (self.repo is None):
            raise ValueError("name either an asset or a repo of the hub")
        if self.repo is None and self.revision is not None:
            raise ValueError("revision belongs to repo; an asset is pinned in config/assets.lock.yaml")
        if self.repo is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            given = "no revision" if self.revision is None else f"revision {self.revision}"
            raise ValueError(
                f"{self.repo} has {given}: give its commit, 40 hex digits (`selfdistill assets add NAME "
                f"--hub {self.repo}` and `selfdistill assets fetch NAME FILE` look it up)"
            )
        return self


class LiveCodeBenchFile(LiveCodeBenchFields):
    """The file of LiveCodeBench in an asset of config/assets.lock.yaml."""

    kind: Literal["livecodebench"] = "livecodebench"
    asset: str = Field(min_length=1, description="Name in config/assets.lock.yaml.")
    file: str | None = Field(
        None, min_length=1, description="File of that asset; may be left out where it has only one."
    )
