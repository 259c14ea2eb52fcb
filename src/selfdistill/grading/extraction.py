"""Where the final answer stands in a completion: in a box, on an answer line, or as the last number."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OPENING = re.compile(r"\s*\{")
_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|\s+(?=-?\d))")
_BARE_NUMBER = re.compile(r"-?\d+(?:[.,/]\d+)*")
# A backslash takes the next character with it, so that the set braces \{ and \} do not count.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|\.\d)")
_EDGE_SPACE = r"(?:\s|~|(?<!\\)\\(?:[ ,;:!>]|q?quad(?![A-Za-z])))+"
_LEADING_SPACE, _TRAILING_SPACE = re.compile(rf"\A{_EDGE_SPACE}"), re.compile(rf"{_EDGE_SPACE}\Z")

#: What a template leaves in a box where the answer belongs.
_PLACEHOLDER = re.compile(
    r"[\s.…_?$~-]*|\\(?:[lcd]?dots|square|Box|_)|(?:(?:your|the|my|insert|final) ){0,3}answers?(?: here)?",
    re.IGNORECASE,
)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
#: Longest text between two boxes of one list.
_LIST_GAP = 40
_LIST_BOXES = 32
_GAP_LAYOUT = re.compile(r"[\s$~*]|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])")
_SEPARATORS = frozenset((",", ";", "and", "or", "&", ",and", ",or", ";and", "、"))


def extract_box(text: str, scope_characters: int | None = None) -> str:
    r"""Content of the last `\boxed{...}`, braces matched; "" where there is none, or where it is not closed.

    With a scope only the last characters are searched, and the box must lie wholly inside (docs/method.md 12). Outer
    whitespace, one leading ":" and one trailing "." or "/" are dropped (docs/method.md 12).
    """
    text = _in_scope(text, scope_characters)
    start = text.rfind("\\boxed")
    while start >= 0:
        opening = _OPENING.match(text, start + len("\\boxed"))
        if opening:
            end = _closing_brace(text, opening.end())
            return "" if end is None else tidy(text[opening.end() : end])
        start = text.rfind("\\boxed", 0, start)
    return ""


def extract_box_as_published(text: str, scope_characters: int | None = None) -> str:
    r"""The last `\boxed{...}` as the official reward reads it: every brace counts, and nothing is dropped.

    [C verl/utils/reward_score/feedback/math.py]; "" where there is none, or where it is not closed.
    """
    text = _in_scope(text, scope_characters)
    start = text.rfind("\\boxed{")
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:] if start >= 0 else ""):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : start + brace.start()]
    return ""


def extract_last_answer(text: str, scope_characters: int | None = None) -> str:
    r"""Content of the last box that holds an answer (rules `extended`); "" where there is none, or one is not closed.

    Empty boxes and placeholders (`\boxed{...}`, `\boxed{your answer}`) are passed over. Boxes that only commas or
    `and` and `or` part are one list: two answers are not one, and a list may be boxed piece by piece.
    """
    text = _in_scope(text, scope_characters)
    first = None
    answers: list[str] = []
    list_start = 0
    for start, end, content in _boxes_from_the_end(text):
        if not answers:
            first = content if first is None else first
            if not _is_placeholder(content):
                answers, list_start = [content], start
        elif len(answers) < _LIST_BOXES and _is_separator(text[end:list_start]):
            answers, list_start = [content, *answers], start
        else:
            break
    if not answers:
        return first or ""
    distinct = list(dict.fromkeys(answers))
    return distinct[0] if len(distinct) == 1 else ", ".join(answers)


def is_boxed_letter_by_letter(text: str, gold: str, scope_characters: int | None = None) -> bool:
    """Whether the last box opens with exactly the gold answer; asked of golds that no reader finds there."""
    text = _in_scope(text, scope_characters)
    box = re.compile(rf"\\boxed\{{\s*{re.escape(gold.strip())}\s*\}}")
    ends = [found.end() for found in box.finditer(text)]
    return bool(ends) and not _BOX.search(text, ends[-1])


def extract_last_number(text: str) -> str:
    """The last number that stands in digits; "" for none."""
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return found[0] if found else ""


def tidy(content: str) -> str:
    """An answer without outer white space, one leading ":" and one trailing "." or "/" (docs/method.md 12)."""
    content = content.strip().removeprefix(":")
    if content.endswith((".", "/")):
        content = content[:-1]
    return content.strip()


def bare(content: str) -> str:
    """An answer without white space of either kind and without end marks, as rules `extended` read a box."""
    return strip_spaces(tidy(strip_spaces(content)))


def without_end_marks(text: str) -> str:
    r"""Without a full stop, comma, semicolon, slash or `\\` at the end; `5!`, `\ldots` and a lone mark stay."""
    end = len(text)
    while end > 1 and (text[end - 1] in ".,;/ " or text[:end].endswith("\\\\")):
        end -= 2 if text[end - 1] == "\\" else 1
    return text[:end]


def strip_spaces(text: str) -> str:
    r"""Without white space at the ends, `\ `, `\,` and `\quad` included; the end of a matrix row, `\\`, stays."""
    return _TRAILING_SPACE.sub("", _LEADING_SPACE.sub("", text))


def _boxes_from_the_end(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, tidied content) of boxes, last first; ends at one that is not closed."""
    limit = len(text)
    openings = list(_BOX.finditer(text))
    for opening in reversed(openings):
        if opening.start() >= limit:
            continue
        if opening[0].endswith("{"):
            end = _closing_brace(text, opening.end())
            if end is None:
                return
            yield opening.start(), end + 1, bare(text[opening.end() : end])
        else:
            number = _BARE_NUMBER.match(text, opening.end())
            yield opening.start(), number.end(), number[0]
        limit = opening.start()


def _is_placeholder(content: str) -> bool:
    words = re.sub(r"\\boxed\{\}|[{}<>\[\]]", "", _TEXT.sub(r"\1", content)).strip()
    return _PLACEHOLDER.fullmatch(words) is not None


def _is_separator(between: str) -> bool:
    if len(between) > _LIST_GAP:
        return False
    return _GAP_LAYOUT.sub("", _TEXT.sub(r"\1", between)).lower() in _SEPARATORS


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace is closed that was opened before `start`."""
    depth = 1
    for token in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.start()
    return None


def _in_scope(text: str, scope_characters: int | None) -> str:
    return text if scope_characters is None else text[-scope_characters:]
