r"""The letter that a completion chooses: in its last box, in `<answer>` tags, or in words."""

from __future__ import annotations

import re
from functools import lru_cache

from selfdistill.grading.extraction import extract_last_answer, strip_spaces

_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mathrm|mathbf|mathsf|mathit|mathtt|boldsymbol|bm|bf|mbox|underline|emph)"
    r"(?![A-Za-z])\s*(?:\{([^{}]*)\})?"
)
_SPACES = re.compile(r"(?:\s|~|\\[,;:! >]|\\q?quad(?![A-Za-z]))+")
_WIDE_SPACE = re.compile(r"\\q?quad(?![A-Za-z])")
_NAMED = r"(?:option|choice|answer|alternative)"


def extract_choice(text: str, choices: str) -> str:
    r"""The chosen letter, upper case: the last box if it holds one, else the last statement; "" for neither or several.

    A box may style or bracket its letter (`\boldsymbol{B}`, `\text{(B)}`, `option B`) and may go on after it
    (`B: 5.3 mol`, `E - a ring`); lower case is accepted there. A statement needs an upper-case letter, as "the answer
    is a ring" is prose. `A, B` and `A or B` choose nothing.
    """
    boxed = extract_last_answer(text)
    if boxed:
        letter = _from_box(boxed, choices)
        if letter is not None:
            return letter
    return _from_words(text, choices)


def extract_choice_as_published(text: str) -> str:
    """What stands in the last `<answer>` tags; the whole text where there are none, as in the official reward.

    [C verl/utils/reward_score/feedback/mcq.py]
    """
    return text.split("<answer>")[-1].split("</answer>")[0].strip()


def _from_box(boxed: str, choices: str) -> str | None:
    """The letter of a box; "" where it holds several, None where it holds none."""
    bare = _STYLE.sub(lambda found: f" {found[1] or ''} ", _WIDE_SPACE.sub(": ", boxed))
    bare = strip_spaces(_SPACES.sub(" ", bare)).strip(" {}$*")
    found = _patterns(choices).box.fullmatch(bare)
    if not found:
        return None
    rest = found["rest"] or ""
    return "" if _patterns(choices).another.search(rest) else found["letter"].upper()


def _from_words(text: str, choices: str) -> str:
    """The letter of the last statement; without one, the only `option X` that is named."""
    patterns = _patterns(choices)
    found = None
    for found in patterns.statement.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    if found is not None:
        if patterns.another.match(text, found.end()):
            return ""
        return next(letter for letter in found.groups() if letter)
    named = set(patterns.named.findall(text))
    return named.pop() if len(named) == 1 else ""


class _Patterns:
    """Regular expressions for one set of letters."""

    def __init__(self, choices: str) -> None:
        letters = "[" + re.escape(choices.upper()) + "]"
        style = r"(?:text(?:bf)?|boxed|mathrm|mathbf|boldsymbol)\s*[{(]*\s*"
        wrapped = rf"[\s*_$({{\[\\\"'“‘]*(?:{style})?({letters})(?![A-Za-z0-9]|['’][a-z])"
        #: After the letter: brackets and marks, then the end, punctuation, or a word that gives a reason.
        reason = r"(?:because|since|as|is|due|for|with|and|or)\b"
        end = rf"(?=[\s)}}\]*_$\"”’]*(?:\Z|\n|[.,:;!?<\u2013\u2014-]|{reason})|[)}}\]:.*_$\"'”’]|\\[)\]])"
        verb = r"(?:is|was|-(?= )|:|=|would be|should be|must be|becomes)"
        self.box = re.compile(
            rf"(?:{_NAMED}\s*:?\s*)?[(\[]?\s*(?P<letter>{letters})\s*[)\]]?"
            rf"(?P<rest>\s*[.:;,)\u2013\u2014-].*|(?<=[)\]])\s*\S.*|(?:\s*(?:/|&|\bor\b|\band\b|\s)\s*{letters}\b.*))?",
            re.IGNORECASE | re.DOTALL,
        )
        #: A second letter after the first: `, B`, `or B`, `/ B`.
        self.another = re.compile(rf"[\s)}}\]*_$]*(?:,|/|&|;|\b(?:or|and)\b)+[\s*_$({{\[]*{letters}(?![A-Za-z0-9'])")
        self.statement = re.compile(
            rf"(?i:\banswers?\b)[*_]{{0,2}}(?:(?i:\s{{1,3}}(?:to|for)\s[^.:\n]{{1,60}}?)??(?i:\s{{0,3}}{verb}){{1,2}}|>)"
            rf"[\s*_]{{0,8}}(?i:{_NAMED}\s{{1,3}})?{wrapped}{end}"
            rf"|(?i:\b(?:correct|right|best)\s{{1,2}}(?:option|choice|alternative|letter)\s{{0,3}}{verb})"
            rf"[\s*_]{{0,8}}(?i:{_NAMED}\s{{1,3}})?{wrapped}{end}"
            rf"|(?:^|\n)[ #*]{{0,8}}(?i:(?:final |the )?answer)[ *#:]{{0,8}}\n{wrapped}{end}"
            rf"|(?i:\b(?:choose|chose|select|pick|go with)\s{{1,2}}(?:{_NAMED}\s{{1,3}})?){wrapped}{end}"
            rf"|(?i:\b{_NAMED}\s{{1,2}})[*_]{{0,2}}\(?({letters})\)?[*_]{{0,2}}"
            rf"\s{{1,2}}(?i:is\s{{1,2}}(?:the\s{{1,2}})?(?:correct|right|best|answer))"
        )
        self.named = re.compile(rf"(?i:\b(?:option|choice)\s{{1,2}})[*_]{{0,2}}\(?({letters})(?![A-Za-z0-9'’])")


@lru_cache(maxsize=16)
def _patterns(choices: str) -> _Patterns:
    return _Patterns(choices)
