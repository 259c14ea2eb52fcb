"""A data set that is a folder: files as on the hub, or what the `datasets` library saved. One split of it is read.

The path of a file says which split it belongs to, by the hub's rules: a folder or a part of the name that is `train`,
`validation` or `test` (or another word for one of them), or the name of numbered shards (`NAME-00000-of-00004`).
Rows of several splits never mix: nobody would notice test rows among training rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from selfdistill.files import read_json
from selfdistill.schema.errors import UserError, nearest
from selfdistill.sources.columnar import read_batches as read_arrow_batches
from selfdistill.sources.streams import PACKED
from selfdistill.sources.text_tables import Record

#: Words that name a split in a path (docs of the hub, "file names and splits").
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"(.+)-\d{5,}-of-\d{5,}")
_WORD_BREAK = re.compile(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])")
#: What files that no word assigns to a split are called in messages, and by `split:`.
REST = "rest"

ReadFile = Callable[[Path], Iterator[list[Record]]]


def read_folder(folder: Path, endings: Sequence[str], split: str | None, read_file: ReadFile) -> Iterator[list[Record]]:
    """Batches of the rows of one split, file by file in the order of their names.

    Raises UserError where there are several splits and none is named, and where the named one is not there.
    """
    if is_saved(folder):
        yield from read_saved(folder, split)
        return
    splits = splits_of(folder, endings)
    if not splits:
        raise UserError(f"{folder}: holds no file that ends in {', '.join(endings)}.")
    for path in splits[chosen_split(folder, list(splits), split)]:
        yield from read_file(path)


def is_saved(folder: Path) -> bool:
    """Whether the `datasets` library saved this folder (`save_to_disk`)."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def splits_of(folder: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
    """Table files of a folder by split, each in the order of their names."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _is_table(path.relative_to(folder), endings):
            splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    return splits


def chosen_split(folder: Path | str, splits: Sequence[str], wanted: str | None) -> str:
    """The wanted split, or the only one. UserError where there are several and none is named, or not the wanted one."""
    known = ", ".join(splits)
    if wanted is None and len(splits) > 1:
        raise UserError(
            f"{folder}: holds several splits: {known}. Name one in the source, e.g. `split: {splits[0]}`, "
            "or one file with `file:`."
        )
    if wanted is not None and wanted not in splits:
        raise UserError(f"{folder}: has no split `{wanted}`.{nearest(wanted, splits)} There: {known}.")
    return wanted or splits[0]


def read_saved(folder: Path, split: str | None) -> Iterator[list[Record]]:
    """Rows of one split of a saved `DatasetDict`, or of a saved `Dataset`, which has no other."""
    from datasets import load_from_disk

    if (folder / "dataset_dict.json").is_file():
        names = _note(folder / "dataset_dict.json", "splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{folder / 'dataset_dict.json'} is damaged: it lists no splits.")
        folder = folder / chosen_split(folder, names, split)
    elif split is not None:
        chosen_split(folder, [str(_note(folder / "state.json", "_split") or REST)], split)
    saved = load_from_disk(str(folder), keep_in_memory=False)
    yield from read_arrow_batches(saved.with_format("arrow").iter(batch_size=32), str(folder))


def _note(path: Path, key: str) -> Any:
    """A value of the notes that the `datasets` library saves; None if it is not there. UserError for a damaged file."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    return content.get(key) if isinstance(content, dict) else None


def _split_of(path: Path) -> str:
    """The split that a path (relative to its folder) names, or REST; the last word that names one decides."""
    stem = path.name.split(".", 1)[0]
    shard = _SHARD.fullmatch(stem)
    stem = shard[1] if shard else stem
    words = [word for part in (*path.parts[:-1], stem) for word in _WORD_BREAK.split(part.lower())]
    named = [_WORDS[word] for word in words if word in _WORDS]
    if named:
        return named[-1]
    return stem.lower() if shard else REST


def _is_table(path: Path, endings: Sequence[str]) -> bool:
    suffixes = [ending.lower() for ending in path.suffixes if ending.lower() not in PACKED]
    is_hidden = any(part.startswith(".") for part in path.parts) or path.name.startswith("dataset_info")
    return not is_hidden and bool(suffixes) and suffixes[-1] in endings
