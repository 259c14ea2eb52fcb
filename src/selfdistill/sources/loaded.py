"""Problems from whatever `datasets.load_dataset` reads: a folder or file here, a repository of the hub at a commit.

The library streams the rows, so memory does not grow with the table and nothing is written to its cache. It runs no
program of a repository. What it would change without a word is kept or refused: cells of CSV stay text, a text of JSON
that it takes for a date is an error, and so is a table with fewer rows or shards than it says it has.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from selfdistill.files import sha256_file
from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import LoadedSource
from selfdistill.sources.columnar import text_of
from selfdistill.sources.file import problems_of
from selfdistill.sources.folders import chosen_split, is_saved, read_saved
from selfdistill.sources.text_tables import Record

#: What the library and the readers below it raise for data that they cannot read.
_REFUSALS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, pa.ArrowException)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<total>\d{5,})(?P<ending>\..+)")


def read_loaded(source: LoadedSource, place: Path, counts: Counter[str]) -> Iterator[dict[str, str | None]]:
    """Usable problems of one split in its order; dropped rows are counted by reason in `counts`.

    `place` is the pinned folder or file. Raises UserError for what the library cannot read.
    """
    pin = source.pin
    name = f"{pin.repo}@{str(pin.revision)[:12]}" if pin.sha256 is None else str(place)
    yield from problems_of(source, _records(source, place, name), name, counts)


def file_digests(source: LoadedSource, place: Path) -> dict[str, str]:
    """SHA-256 of the files that the split is read from, and of the README.md that says how, by their paths."""
    with _builder(source, place) as builder:
        split = chosen_split(str(place), [str(split) for split in builder.config.data_files or ()], source.split)
        paths = [place / "README.md", *map(Path, builder.config.data_files[split])]
    return {path.relative_to(place).as_posix(): sha256_file(path) for path in paths if path.is_file()}


def _records(source: LoadedSource, place: Path, name: str) -> Iterator[Record]:
    if place.is_dir() and is_saved(place):
        if source.config or source.files:
            raise UserError(f"{name} was saved by `save_to_disk`: it has no configurations and no patterns of files.")
        for batch in read_saved(place, source.split):
            yield from batch
        return
    try:
        with _builder(source, place) as builder:
            yield from _rows(builder, source, name)
    except _REFUSALS as error:
        asked = f" with files: {', '.join(source.files)}" if source.files else ""
        raise UserError(f"{name}: `load_dataset` cannot read it{asked}: {_first_line(error)}") from None


@contextmanager
def _builder(source: LoadedSource, place: Path) -> Iterator[Any]:
    """The library's reader of a folder; a single file is shown to it alone in one, so that no neighbour has a say."""
    from datasets import load_dataset_builder

    with tempfile.TemporaryDirectory() as scratch:
        folder = place
        patterns = {source.split or "train": source.files} if source.files else None
        if place.is_file():
            folder = Path(scratch, "data")
            folder.mkdir()
            (folder / place.name).symlink_to(place.resolve())
        yield load_dataset_builder(
            str(folder), source.config, data_files=patterns, cache_dir=str(Path(scratch, "cache"))
        )


def _rows(builder: Any, source: LoadedSource, name: str) -> Iterator[Record]:
    split = chosen_split(name, [str(split) for split in builder.config.data_files or ()], source.split)
    _check_shards(builder.config.data_files[split], name)
    if builder.name == "csv":
        _keep_text(builder, split)
    rows = builder.as_streaming_dataset(split)
    needed = {path.split(".", 1)[0] for _, path in source.fields.mapped}
    if needed <= set(rows.column_names or ()):
        rows = rows.select_columns(sorted(needed))
    number = 0
    for number, row in enumerate(rows, start=1):
        if builder.name == "json":
            _check_dates(row, f"{name}: row {number}", needed)
        yield Record(number, f"{name}: row {number}", text_of(row))
    known = (builder.info.splits or {}).get(split)
    if known is not None and known.num_examples not in (None, number) and not source.files:
        raise UserError(f"{name}: split `{split}` has {number} rows, but its README.md names {known.num_examples}.")


def _keep_text(builder: Any, split: str) -> None:
    """Every cell of CSV stays text, unless the repository names the types: 007 and NA are answers."""
    from datasets import Features, Value

    builder.config.keep_default_na = False
    if builder.config.features is None:
        first = next(iter(builder.as_streaming_dataset(split).with_format("arrow").iter(batch_size=1)), None)
        if first is not None:
            builder.config.features = Features(dict.fromkeys(first.column_names, Value("string")))
            builder.info.features = builder.config.features


def _check_dates(row: dict[str, Any], where: str, needed: set[str]) -> None:
    for column in sorted(needed & set(row)):
        if _holds_date(row[column]):
            raise UserError(
                f"{where}: `load_dataset` takes the text in `{column}` for a date, which changes it. Read the file "
                "with `kind: asset`, or name the types of the columns in the README.md beside it (dataset_info)."
            )


def _holds_date(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_date, value.values()))
    if isinstance(value, list):
        return any(map(_holds_date, value))
    return isinstance(value, (date, datetime))


def _check_shards(paths: Sequence[str], name: str) -> None:
    """A cache may hold a part of the files of a commit; numbered shards say how many there are."""
    found: dict[tuple[str, str, int], set[int]] = {}
    for path in paths:
        shard = _SHARD.fullmatch(path)
        if shard:
            family = (shard["stem"], shard["ending"], int(shard["total"]))
            found.setdefault(family, set()).add(int(shard["number"]))
    for (stem, _, total), numbers in found.items():
        if len(numbers) < total:
            raise UserError(
                f"{name}: {total - len(numbers)} of {total} files of {Path(stem).name} are missing: the download or "
                "copy is not complete."
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
