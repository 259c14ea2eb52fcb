"""Records of JSON and CSV text.

JSON is one object a line, objects that stretch over lines (as `jq` prints them), or one array of objects. All but an
array are read in pieces. What a file says twice is refused, not decided by the order: a header or a key that repeats.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from selfdistill.schema.errors import UserError
from selfdistill.sources.streams import Line

#: Records of an array that are handed on at once.
_ARRAY_BATCH = 256
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Stands for a character that is broken in the file, as everywhere in Unicode.
REPLACEMENT = "\ufffd"


class Record(NamedTuple):
    """One row of a table; `number` is its line (of parquet and of an array: its place, from 1 on), `where` says it."""

    number: int
    where: str
    values: dict[str, Any]


Blocks = Iterable[list[Line]]


class _Repeated(ValueError):
    pass


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Half of a surrogate pair, which no UTF-8 can carry, becomes the replacement character.

    Raises ValueError (JSONDecodeError, UnicodeDecodeError, a key that is given twice in one object) or RecursionError.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    value = json.loads(text, object_pairs_hook=_object_of)
    return _mended(value) if "\\ud" in text or "\\uD" in text else value


def read_json(blocks: Blocks, name: str) -> Iterator[list[Record]]:
    """Batches of records, one for each block. Those before a broken one are handed on before UserError is raised."""
    blocks = iter(blocks)
    for block in blocks:
        begun = [line for line in block if line.content.strip()]
        if begun and looks_like_json(begun[0].content, b"["):
            yield from _array([*block, *itertools.chain.from_iterable(blocks)], name)
            return
        if begun:
            blocks = itertools.chain([block], blocks)
            break
    for pieces in _pieces(blocks):
        yield from _batch(pieces, name)


def read_csv(blocks: Blocks, name: str) -> Iterator[list[Record]]:
    """Batches of records. Every cell stays text: 007 and 1/2 are answers, not numbers and dates."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    pending: deque[Line] = deque()
    reader = csv.reader(_decoded(blocks, pending, name), strict=True)
    header: list[str] = []
    batch: list[Record] = []
    line = 1
    try:
        for cells in reader:
            number, line = line, reader.line_num + 1
            where = f"{name}: line {number}"
            if not cells:
                continue
            if not header:
                header = _header(cells, where)
                continue
            if len(cells) != len(header):
                raise UserError(f"{where} has {len(cells)} cells, but the header has {len(header)}.")
            batch.append(Record(number, where, dict(zip(header, cells, strict=True))))
            if not pending:
                yield batch
                batch = []
    except (csv.Error, UserError) as error:
        if batch:
            yield batch
        raise error if isinstance(error, UserError) else UserError(f"{name}: line {line}: {error}.") from None
    if batch:
        yield batch


def looks_like_json(head: bytes, signs: bytes = b"{[") -> bool:
    """Whether the first character is one of these."""
    first = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return bool(first) and first in signs


def looks_like_csv(head: bytes) -> bool:
    """Whether the first line names several columns."""
    return b"," in head.lstrip().split(b"\n", 1)[0]


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise _Repeated(f"`{name}` is given twice in one object")
    return values


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value


def _pieces(blocks: Blocks) -> Iterator[list[Line]]:
    """Lines that each hold a whole JSON value, block by block; one that opens alone on its line is put together.

    Only a bracket alone on a line opens such a value, as every printer writes it. So a line of JSON Lines that was cut
    short stays an error of that line.
    """
    open_at, depth = 0, 0
    parts: list[bytes] = []
    for block in blocks:
        whole: list[Line] = []
        for line in block:
            content = line.content.strip()
            if not parts and content.lstrip(b"\xef\xbb\xbf") != b"{":
                if content:
                    whole.append(line)
                continue
            open_at = open_at if parts else line.number
            parts.append(line.content)
            bare = _STRING.sub(b"", content)
            depth += sum(bare.count(sign) for sign in (b"{", b"[")) - sum(bare.count(sign) for sign in (b"}", b"]"))
            if depth <= 0:
                whole.append(Line(open_at, b"\n".join(parts)))
                parts, depth = [], 0
        if whole:
            yield whole
    if parts:
        yield [Line(open_at, b"\n".join(parts))]


def _batch(lines: Iterable[Line], name: str) -> Iterator[list[Record]]:
    records: list[Record] = []
    for line in lines:
        where = f"{name}: line {line.number}"
        try:
            records.append(Record(line.number, where, _object(parse_json(line.content), where)))
        except (ValueError, RecursionError) as error:
            broken = UserError(f"{where} is not valid JSON: {_explained(error, line)}.")
        except UserError as error:
            broken = error
        else:
            continue
        if records:
            yield records
        raise broken
    yield records


def _array(lines: list[Line], name: str) -> Iterator[list[Record]]:
    """Elements of the one array that a file holds."""
    try:
        rows = parse_json(b"\n".join(line.content for line in lines))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: line {getattr(error, 'lineno', 1)} is not valid JSON: {error}.") from None
    for first in range(0, len(rows), _ARRAY_BATCH):
        records = []
        for index, row in enumerate(rows[first : first + _ARRAY_BATCH], start=first + 1):
            where = f"{name}: element {index}"
            if not isinstance(row, dict) and records:
                yield records
            records.append(Record(index, where, _object(row, where)))
        yield records


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object with named fields.")
    return value


def _explained(error: Exception, line: Line) -> str:
    if isinstance(error, json.JSONDecodeError) and error.lineno > 1:
        return f"{error.msg} at line {line.number + error.lineno - 1}"
    return str(error)


def _decoded(blocks: Blocks, pending: deque[Line], name: str) -> Iterator[str]:
    for block in blocks:
        pending.extend(block)
        while pending:
            line = pending.popleft()
            try:
                yield line.content.decode("utf-8-sig" if line.number == 1 else "utf-8") + "\n"
            except UnicodeDecodeError as error:
                raise UserError(f"{name}: line {line.number} is not UTF-8 text: {error}.") from None


def _header(names: list[str], where: str) -> list[str]:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise UserError(f"{where}: two columns are called `{repeated[0]}`: rename one of them.")
    return names
