"""Problems from a table file: dotted paths to fields, answer options, removal of the file's own instruction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from selfdistill.prompts import strip_instruction
from selfdistill.schema.errors import UserError, nearest
from selfdistill.schema.sources import FieldMap, FileFields, FileSource
from selfdistill.sources.conversations import LostTurns, system_text
from selfdistill.sources.paths import MISSING, look_up
from selfdistill.sources.tables import Record, read_table
from selfdistill.sources.text_tables import REPLACEMENT, parse_json

NO_INSTRUCTION = "kept without the instruction"
BROKEN_CHARACTER = "kept with a broken character"
#: Counted, but kept: the text is taken as it stands. The values are names in the summary of a data set.
KEPT = {NO_INSTRUCTION: "kept_without_instruction", BROKEN_CHARACTER: "kept_with_broken_character"}


class _Unusable(Exception):
    """A row that cannot become a problem; the message is the reason."""


def read_file(source: FileSource, path: Path, counts: Counter[str]) -> Iterator[dict[str, str | None]]:
    """Usable problems of a file in its order; otherwise as `problems_of`."""
    path = _within(source, path)
    yield from problems_of(
        source, read_table(path, [path for _, path in source.fields.mapped], source.split), str(path), counts
    )


def problems_of(
    source: FileFields, records: Iterable[Record], where: str, counts: Counter[str]
) -> Iterator[dict[str, str | None]]:
    """Usable problems of records in their order; dropped rows are counted by reason in `counts`.

    Nothing is held but the rows at hand. Raises UserError when a mapped field is found in no row at all (a wrong
    path), and when no row is usable.
    """
    found: Counter[str] = Counter()
    columns: list[str] = []
    is_any = False
    for record in records:
        columns = columns or list(record.values)
        values = {name: look_up(record.values, field) for name, field in source.fields.mapped}
        found.update(name for name, value in values.items() if value is not MISSING)
        try:
            problem = _problem(_with_system(values, record, source.fields))
        except _Unusable as reason:
            counts[str(reason)] += 1
            continue
        question = str(problem["question"])
        if source.instruction != "none":
            problem["question"] = strip_instruction(question, source.instruction)
            counts[NO_INSTRUCTION] += problem["question"] == question.strip()
        counts[BROKEN_CHARACTER] += any(REPLACEMENT in (text or "") for text in problem.values())
        is_any = True
        yield problem
    _check_found(source.fields, found, columns, where)
    if not is_any:
        raise UserError(f"{where}: no row is a usable problem: {dict(+counts) or 'the file has no rows'}.")


def _within(source: FileSource, path: Path) -> Path:
    """The file or folder inside a folder that the source names."""
    if source.within is None:
        return path
    inner = path / source.within
    if not path.is_dir():
        raise UserError(f"{path} is one file of your own; leave out file: {source.within}.")
    if Path(source.within).is_absolute() or ".." in Path(source.within).parts or not inner.exists():
        names = [entry.relative_to(path).as_posix() for entry in sorted(path.rglob("*")) if entry.is_file()]
        raise UserError(f"{path}: holds no {source.within}.{nearest(source.within, names)}")
    return inner


def _with_system(values: dict[str, Any], record: Record, fields: FieldMap) -> dict[str, Any]:
    try:
        system = system_text(record, fields)
    except LostTurns:
        raise _Unusable("earlier turns before the question") from None
    return values if system is None else {**values, "system": system}


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question and its options, one a line: `A) ...`."""
    lettered = (f"{letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return "\n".join([f"{question}\n", *lettered])


def _problem(values: dict[str, Any]) -> dict[str, str | None]:
    question = _text(values["question"], "question")
    if "choices" in values:
        choices = _choices(values["choices"])
        question = with_choices(question, choices)
        answer = _letter(values["answer"], choices)
    else:
        answer = _text(values["answer"], "answer")
    family, solution, system = (_optional(values.get(name)) for name in ("family", "solution", "system"))
    problem = {"question": question, "answer": answer, "family": family or "", "solution": solution}
    return problem | ({} if system is None else {"system": system})


def _text(value: Any, name: str) -> str:
    """Text of a scalar; a whole float is an integer (tables with gaps turn one into the other)."""
    if value is MISSING or value is None or value != value:
        raise _Unusable(f"missing {name}")
    if isinstance(value, (dict, list, bytes)):
        raise _Unusable(f"{name} is not a text or number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    if not text:
        raise _Unusable(f"empty {name}")
    return text


def _optional(value: Any) -> str | None:
    try:
        return _text(value, "field")
    except _Unusable:
        return None


def _choices(value: Any) -> list[str]:
    """Options from a list, or from a dict of lists that has the list under `text` (a common published form)."""
    if isinstance(value, str):
        value = _list_of(value)
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, list) or not 2 <= len(value) <= len(ascii_uppercase):
        raise _Unusable("missing choices")
    return [_text(choice, "choice") for choice in value]


def _letter(value: Any, choices: Sequence[str]) -> str:
    """Letter of the right option, given as letter, as index from 0 (a number), or as the option's text."""
    letters = ascii_uppercase[: len(choices)]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return letters[value]
    text = _text(value, "answer")
    if text.upper() in letters and len(text) == 1:
        return text.upper()
    if choices.count(text) == 1:
        return letters[choices.index(text)]
    raise _Unusable("answer is not one of the choices")


def _list_of(text: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return MISSING


def _check_found(fields: FieldMap, found: Counter[str], columns: Sequence[str], where: str) -> None:
    """A path that leads nowhere in every row is a wrong path, not a gap in the data."""
    for name, field in fields.mapped:
        if columns and not found[name]:
            hint = nearest(field.split(".")[0], columns)
            raise UserError(f"{where}: fields.{name}: no row has `{field}`.{hint} Columns: {', '.join(columns)}.")
