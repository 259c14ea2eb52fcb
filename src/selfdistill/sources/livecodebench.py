"""Programming tasks of LiveCodeBench: question, signature, hidden unit tests, and which of them reward training.

The paper takes the contests from 2025-02-01 to before 2025-05-01 (131 tasks). The tests are the hidden ones; those in
the text of a question are not run again. Training is rewarded by half of a task's tests, at least one, evaluation by
all. The official code draws the half with one generator over the whole file; here each task has a draw of its own, so
that it does not depend on the other rows.

The hidden tests lie in the file as base64 of zlib of a pickle of a JSON text. A pickle can run code when it is loaded;
so it is read op by op first, and refused unless it builds nothing but texts, numbers, lists and dicts.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import pickletools
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.files import sha256_text
from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import LiveCodeBenchSource
from selfdistill.sources.tables import read_table

_COLUMNS = ("question_content", "starter_code", "contest_date", "private_test_cases", "metadata")
#: Pickle instructions that build plain values; none of them looks up a name, so none can call anything.
_PLAIN = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"}
    | {"NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "EMPTY_LIST", "APPEND", "APPENDS", "LIST"}
    | {"EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"}
)
#: Unpacked tests of one task; the largest published ones have tens of megabytes.
_MOST_BYTES = 1 << 30


class UnsafePickle(ValueError):
    """A pickle that would do more than build plain values."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise UnsafePickle(f"it asks for {module}.{name}")


def read_livecodebench(
    source: LiveCodeBenchSource, path: Path, counts: Counter[str]
) -> Iterator[dict[str, str | None]]:
    """Tasks of the contests in question; those of other dates are counted as dropped.

    Raises UserError for a file of another form, for tests that are not plain values, and when no task is left.
    """
    is_any = False
    for _, where, row in read_table(path, (*_COLUMNS, "difficulty")):
        missing = [name for name in _COLUMNS if name not in row]
        if missing:
            raise UserError(f"{where} has no `{missing[0]}`, so this is not a file of LiveCodeBench.")
        day = str(row["contest_date"])[:10]
        if not source.first_date <= day < source.end_date:
            counts["contest outside the dates"] += 1
            continue
        wrong = [name for name in ("question_content", "private_test_cases") if not isinstance(row[name], str)]
        if wrong:
            raise UserError(f"{where}: {wrong[0]} is not a text.")
        try:
            tests = decode_tests(row["private_test_cases"])
        except ValueError as error:
            raise UserError(f"{where}: private_test_cases cannot be read: {error}") from None
        try:
            metadata = json.loads(row["metadata"]) if str(row["metadata"] or "").strip() else {}
            function = metadata.get("func_name") or None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where}: metadata cannot be read: {error}") from None
        if not tests:
            counts["no tests"] += 1
            continue
        is_any = True
        yield _task(source, row, tests, function)
    if not is_any:
        raise UserError(f"{path}: no task is from {source.first_date} to before {source.end_date}: {dict(counts)}.")


def decode_tests(text: str) -> list[dict[str, str]]:
    """Hidden tests, from JSON or from packed JSON. Raises ValueError for anything else, UnsafePickle included."""
    if not text.lstrip().startswith("["):
        text = _unpack(text)
    try:
        tests = [{"input": test["input"], "output": test["output"]} for test in json.loads(text)]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"no list of tests with input and output ({type(error).__name__})") from None
    if not all(isinstance(part, str) for test in tests for part in test.values()):
        raise ValueError("an input or an output is not a text")
    return tests


def plain_unpickle(data: bytes) -> Any:
    """Value of a pickle that holds plain values only; UnsafePickle, before anything is built, for any other."""
    try:
        used = {operation.name for operation, _, _ in pickletools.genops(data)}
    except Exception as error:  # pickletools raises whatever it stumbles over in bytes that are no pickle.
        raise UnsafePickle(f"it is not a pickle ({error})") from None
    if not used <= _PLAIN:
        raise UnsafePickle(f"it uses {', '.join(sorted(used - _PLAIN))}")
    return _PlainUnpickler(io.BytesIO(data)).load()


def _unpack(text: str) -> str:
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from None
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {_MOST_BYTES} bytes when unpacked")
    try:
        value = plain_unpickle(data)
    except UnsafePickle:
        raise
    except Exception as error:  # An unpickler raises whatever it stumbles over.
        raise ValueError(f"it is not a pickle ({error})") from None
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where JSON text belongs")
    return value


def _task(
    source: LiveCodeBenchSource, row: dict[str, Any], tests: list[dict[str, str]], function: str | None
) -> dict[str, str | None]:
    question = row["question_content"].strip()
    if str(row["starter_code"] or "").strip():
        signature = _signature(str(row["starter_code"]))
        question += f"\n\nYour solution should have the following signature: ```python\n{signature}\n```"
    count = max(1, int(len(tests) * source.training_share))
    generator = np.random.default_rng(int(sha256_text(f"{source.seed}:{question}")[:16], 16))
    chosen = sorted(generator.choice(len(tests), size=count, replace=False).tolist())
    answer = {"function": function, "tests": tests, "training": chosen}
    family = str(row.get("difficulty") or "")
    return {"question": question, "answer": json.dumps(answer, ensure_ascii=False), "family": family, "solution": None}


def _signature(starter_code: str) -> str:
    """`def f(...) -> ...:` of the starter code, without its class and its `self`."""
    signature = starter_code[max(0, starter_code.find("def ")) :].strip()
    return signature.replace("(self, ", "(").replace("(self)", "()")
