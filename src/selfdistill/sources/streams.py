"""Bytes of a file, a pipe or standard input: decompressed, and cut into blocks of whole lines.

A block is what one read brought, so the records of a pipe are there before the pipe ends. Decompression is Arrow's:
zstandard's own reader takes a file that was cut short for a whole one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from selfdistill.schema.errors import UserError

#: The path that means standard input.
STDIN = "-"
#: Compression by the ending of a name.
PACKED = {".gz": "gzip", ".zst": "zstd"}
#: Bytes asked for at once. A pipe gives what it has, which is less.
BLOCK_BYTES = 2**20
#: How compressed content begins, for input whose name says nothing.
_PACKED_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PARQUET_MAGIC = b"PAR1"


class Line(NamedTuple):
    """One line of a text, from 1 on, without its end."""

    number: int
    content: bytes


class Source:
    """An input by its path; `name` is what messages call it, `ending` its kind (`.jsonl`), where the name has one."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.name = "standard input" if self.path == STDIN else self.path
        endings = [] if self.path == STDIN else [ending.lower() for ending in Path(self.path).suffixes]
        self.is_packed = bool(endings) and endings[-1] in PACKED
        self._packed = PACKED.get(endings[-1], "") if endings else ""
        self.ending = next(iter(endings[-2:-1] if self.is_packed else endings[-1:]), "")
        self._stream: Any = None

    def open(self) -> None:
        """Raises UserError for what is not there. A named pipe, `<(command)` included, is read like standard input."""
        if self.path != STDIN and not Path(self.path).exists():
            raise UserError(f"{self.path}: no such file. Give a table file, or - for standard input.")
        try:
            is_stdin = self.path == STDIN
            self._stream = open(sys.stdin.fileno() if is_stdin else self.path, "rb", closefd=not is_stdin)  # noqa: SIM115
            packed = self._packed or next(
                (kind for magic, kind in _PACKED_MAGIC.items() if not self.ending and self.peek().startswith(magic)), ""
            )
            if packed:
                self._stream = _Unpacked(self._stream, packed)
        except OSError as error:
            raise self.unreadable(error) from None

    def peek(self) -> bytes:
        """The first bytes, as many as are there, without taking them."""
        try:
            return self._stream.peek(BLOCK_BYTES)
        except (OSError, pa.ArrowException) as error:
            raise self.unreadable(error) from None

    def is_parquet(self) -> bool:
        return self.peek().startswith(_PARQUET_MAGIC)

    def read_all(self) -> bytes:
        return b"".join(self._blocks())

    def line_blocks(self) -> Iterator[list[Line]]:
        """The whole lines of each block; a long line is put together once, at its end."""
        begun: list[bytes] = []
        number = 0
        for block in self._blocks():
            *lines, rest = block.split(b"\n")
            if lines:
                lines[0] = b"".join([*begun, lines[0]])
                begun = []
                yield [Line(number + i, content) for i, content in enumerate(lines, start=1)]
                number += len(lines)
            begun.append(rest)
        if last := b"".join(begun):
            yield [Line(number + 1, last)]

    def unreadable(self, error: Exception) -> UserError:
        return UserError(f"{self.name}: cannot be read: {error}.")

    def _blocks(self) -> Iterator[bytes]:
        try:
            with self._stream as stream:
                while block := stream.read1(BLOCK_BYTES):
                    yield block
        except (OSError, pa.ArrowException) as error:
            raise self.unreadable(error) from None


class _Unpacked:
    """A decompressed stream with the two methods of a buffered reader that are used here."""

    def __init__(self, stream: Any, packed: str) -> None:
        self._below = stream
        self._stream = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), packed)
        self._begun = b""

    def peek(self, size: int) -> bytes:
        self._begun = self._begun or self._stream.read1(size)
        return self._begun

    def read1(self, size: int) -> bytes:
        begun, self._begun = self._begun, b""
        return begun or self._stream.read1(size)

    def __enter__(self) -> _Unpacked:
        return self

    def __exit__(self, *_: object) -> None:
        self._below.close()
