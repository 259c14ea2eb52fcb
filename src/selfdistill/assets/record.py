"""What the asset commands do: add, fetch (which records commits and digests in the lock), check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from selfdistill.assets.download import Unreachable, download_file, list_files, resolve_revision
from selfdistill.assets.folders import folder_digest, visible_files
from selfdistill.assets.places import ASSET_FOLDER, MODEL_FOLDER, Assets
from selfdistill.files import sha256_file, write_if_changed
from selfdistill.schema.assets import LOCAL_FILE, LOCK_FILE, AssetEntry, Kind, LocalAsset, check_new
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError

LOCK_HEADER = """\
# External models and data sets: what they are. Written by `selfdistill assets fetch`, reviewed like code.
# revision is a commit, never a branch; files holds the SHA-256 recorded at the first fetch and checked from then on.
# `unresolved` means that the commit is not pinned yet; planning an experiment that needs it names the command to run.
# Paths on this machine are in config/assets.local.yaml (not tracked by git): `name: /path/to/file-or-folder`.

"""
LOCAL_HEADER = """\
# Paths of assets on this machine (not tracked by git). A name that is not in assets.lock.yaml needs its sha256.

"""


def fetch(assets: Assets, name: str, files: Sequence[str] = ()) -> list[Path]:
    """Download an asset, if necessary, and record commit and digests that the lock does not have yet.

    `files` names the wanted files of a data set whose files the lock does not list yet. Returns the paths of
    its files, or the one folder of a model. UserError if something cannot be downloaded or has another digest.
    """
    entry = assets.lock.assets.get(name)
    if entry is None:
        pin = assets.lock.pin(name)
        return [assets.model_folder(pin) if assets.lock.local[name].kind == "model" else assets.file(pin)]
    if not entry.is_resolved:
        entry = _resolve(name, entry)
        assets = _record(assets, name, entry)
    if entry.kind == "model":
        folder = assets.model_folder(assets.lock.pin(name))
        if entry.source == "hub" and not entry.files:
            digests = {path.relative_to(folder).as_posix(): sha256_file(path) for path in visible_files(folder)}
            _record(assets, name, entry.model_copy(update={"files": digests}))
        return [folder]
    unlisted = [file for file in files if file not in entry.files]
    if unlisted or not entry.files:
        assets = _fetch_unlisted(assets, name, entry, unlisted)
    wanted = files or assets.lock.entry(name).files
    return [assets.file(assets.lock.pin(name, file)) for file in wanted]


def check(assets: Assets, name: str) -> dict[str, str]:
    """State of every recorded file of an asset: `ok`, `missing` and where to copy it, or what is wrong.

    Nothing is downloaded.
    """
    if name in assets.lock.local and name not in assets.lock.assets:
        return {assets.lock.local[name].file: _state_of_own(assets, name)}
    entry = assets.lock.entry(name)
    if not entry.is_resolved:
        return {"-": f"unresolved: {entry.reason}"}
    if not entry.files:
        return {"-": f"no digests yet: `selfdistill assets fetch {name}` records them"}
    if entry.kind == "model" and entry.source == "hub":
        return _check_model(assets, name, entry)
    return {file: _state(assets, name, assets.lock.pin(name, file)) for file in entry.files}


def add_local(assets: Assets, name: str, path: Path) -> LocalAsset:
    """Record a file or folder of the user's own, with its digest, in config/assets.local.yaml.

    A folder with a config.json is a model, any other folder a data set.
    """
    check_new(name)
    if name in assets.lock.assets:
        raise UserError(f"`{name}` is in {LOCK_FILE} already: choose another name, or give its path in {LOCAL_FILE}.")
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    is_model = (path / "config.json").is_file() or path.suffix == ".gguf"
    digest = folder_digest(path) if path.is_dir() else sha256_file(path)
    kind: Kind = "model" if is_model else "dataset"
    added = LocalAsset(path=str(path), kind=kind, sha256=digest)
    local = {**assets.lock.local, name: added}
    content = {key: value.model_dump(exclude_none=True) for key, value in local.items()}
    write_if_changed(assets.root / LOCAL_FILE, LOCAL_HEADER + _dump(content))
    return added


def add_entry(assets: Assets, name: str, entry: AssetEntry) -> AssetEntry:
    """Record an external asset in config/assets.lock.yaml; `fetch` downloads it and records commit and digests."""
    check_new(name)
    if name in assets.lock.assets or name in assets.lock.local:
        raise UserError(f"`{name}` is an asset already: choose another name, or edit {LOCK_FILE}.")
    _record(assets, name, entry)
    return entry


def write_lock(root: Path, entries: dict[str, AssetEntry]) -> None:
    """Write config/assets.lock.yaml; unchanged content leaves the file untouched."""
    content = {name: entry.model_dump(exclude_none=True, exclude_defaults=True) for name, entry in entries.items()}
    text = LOCK_HEADER + "\n".join(_dump({name: entry}) for name, entry in content.items())
    write_if_changed(root / LOCK_FILE, text)


def _dump(content: dict) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _record(assets: Assets, name: str, entry: AssetEntry) -> Assets:
    entries = {**assets.lock.assets, name: entry}
    write_lock(assets.root, entries)
    lock = assets.lock.model_copy(update={"assets": entries})
    return Assets(lock, assets.root, assets.test_data)


def _resolve(name: str, entry: AssetEntry) -> AssetEntry:
    try:
        revision = resolve_revision(entry)
    except Unreachable as error:
        moving = entry.ref or "its main branch"
        raise UserError(
            f"{LOCK_FILE}: `{name}` ({entry.repo}) has no pinned revision, and the commit of {moving} cannot be looked "
            f"up from here ({error}). Run this on a machine with a network, or write the commit by hand."
        ) from None
    return entry.model_copy(update={"revision": revision, "reason": None})


def _fetch_unlisted(assets: Assets, name: str, entry: AssetEntry, files: Sequence[str]) -> Assets:
    """Download files that the lock does not list yet and record their digests."""
    check_new(name, files)
    try:
        if not files:
            listed = ", ".join(list_files(entry)) if entry.source == "hub" else "see its repository"
            raise UserError(f"`{name}`: give the files to download after the name. It has: {listed}.")
        digests = dict(entry.files)
        for file in files:
            download_file(entry, file, assets.home(name) / file)
            digests[file] = sha256_file(assets.home(name) / file)
    except Unreachable as error:
        raise UserError(
            f"`{name}` ({entry.repo} at {entry.revision}) cannot be downloaded from here: {error}"
        ) from None
    return _record(assets, name, entry.model_copy(update={"files": digests}))


def _check_model(assets: Assets, name: str, entry: AssetEntry) -> dict[str, str]:
    from huggingface_hub import try_to_load_from_cache

    folder = assets.model_place(name)
    states = {}
    for file, sha256 in entry.files.items():
        cached = None if folder else try_to_load_from_cache(entry.repo, file, revision=entry.revision)
        path = folder / file if folder else Path(cached) if isinstance(cached, str) else None
        if path is None or not path.is_file():
            states[file] = f"missing: copy it to {MODEL_FOLDER / name / file}"
        else:
            states[file] = "ok" if sha256_file(path) == sha256 else f"{path} differs from the recorded sha256"
    return states


def _state(assets: Assets, name: str, pin: AssetPin) -> str:
    try:
        place = ASSET_FOLDER / name / str(pin.file)
        return f"missing: copy it to {place}" if assets.find_file(pin) is None else "ok"
    except UserError as error:
        return str(error)


def _state_of_own(assets: Assets, name: str) -> str:
    """State of a file or folder that only the local file knows."""
    try:
        pin = assets.lock.pin(name)
        assets.model_folder(pin) if assets.lock.local[name].kind == "model" else assets.file(pin)
    except UserError as error:
        return str(error)
    return "ok"
