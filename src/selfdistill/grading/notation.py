r"""Other ways to write the same answer, put into the one that math-verify reads (docs/method.md 12.3).

Used where a grader's `rules` are `extended`. Each rule is about notation, never about mathematics: `1\,000` and
`1000`, `90°` and `90^\circ`. Every step is one pass of a regular expression whose repetitions cannot overlap, over at
most 256 characters (longer answers are not compared), so nothing here can hang.
"""

from __future__ import annotations

import re

from selfdistill.grading.characters import to_latex
from selfdistill.grading.extraction import strip_spaces, without_end_marks
from selfdistill.grading.latex import complete_arguments, escape_function_names, rename_commands
from selfdistill.grading.wording import plain_wording

_COLOUR = re.compile(r"\\(?:textcolor|color)\s*\{[^{}]*\}")
_PHANTOM = re.compile(r"\\[hv]?phantom\s*\{[^{}]*\}")
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*(?:\\circ|\\(?:text|mathrm)\{o\}|o)\s*\}|\\circ|o(?![A-Za-z]))\s*")
_ARC_MINUTES = re.compile(r"(?<![\d.])(\d{1,4})\^\\circ (\d{1,2})(?:'|\^\{?\\prime\}?)(?![\d'])")
_ANGLE_OF_FUNCTION = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{?\d\}?)?)\s*(?:\(\s*(\d+(?:\.\d+)?)\^\\circ\s*\)|\{?(\d+(?:\.\d+)?)\^\\circ\s*\}?)"
)
_EXPONENT = re.compile(r"(?<![A-Za-z\d.])(\d{1,20}(?:\.\d{1,20})?)[eE]([+-]?\d{1,3})(?![\d.A-Za-z])")
_LETTER_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))")
_MIXED = re.compile(r"(?<![\d./}A-Za-z])(\d{1,20})(?: +|-(?=\d{1,3}/\d{1,3}\Z))(\d{1,20})/(\d{1,20})(?![\d/.])")
_PERCENT_OF_MIXED = re.compile(r"(-?)(\d{1,20})\s*\\frac\{(\d{1,20})\}\{(\d{1,20})\}\s*\\%")
_REPEATING = re.compile(r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*\{(\d{1,20})\}(?!\d)")
_DOTTED = re.compile(r"(?<![\d.])(\d{0,20})\.(\d{0,4}?)(\d{1,6})(?:\3){2,40}(?:\\[lc]?dots\b|\.{3})\s*(?![\d.])")
_UPRIGHT_LETTER = re.compile(
    r"\\mathrm\{([ei])\}|\\text\{(i)\}(?!\Z)|(?<=\d)\\text\{(i)\}|\\(?:mathrm|text)\{([A-Za-z])\}(?=_)"
)
_STYLED_NUMBER = re.compile(r"\\(?:mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|text)\s*\{\s*(-?[\d.,/ ]*\d)\s*\}")
_OUTER_TEXT = re.compile(r"\\text\{\s*(\\?\$?-?\d[^{}]*)\}")
_MEMBER = re.compile(r"[A-Za-z]\s*\\in\s*(?=[\[(])")
_SET_BUILDER = re.compile(
    r"(?:\\left\s*)?\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?::|\||\\mid(?![A-Za-z]))\s*"
    r"(?=[^{}]*\1)(.*[<>=].*|.*\\[lgn]e(?![A-Za-z]).*?)(?:\\right\s*)?\\\}"
)
_STYLED_DOLLAR = re.compile(r"\\(?:text|mathrm)\{\s*\\?\$\s*\}")
_COLON = re.compile(r"\\text\s*\{\s*:\s*\}|\{:\}|(?<=\d)\s*\\text\s*\{\s*to\s*\}\s*(?=\d)")
#: A power as it is typed: 10^-34, 2^100.
_TYPED_POWER = re.compile(r"\^\s*(-\s*\d+|\d{2,})(?![\d.}])")
_SEMICOLON_PAIR = re.compile(r"([\[(])([^;,()\[\]]+);([^;,()\[\]]+)([\])])")
_CURRENCY_CODE = re.compile(r"(?:USD|EUR|GBP)\s*(?=\d)|(?<=\d)\s*(?:USD|EUR|GBP)\Z")
_OVER = re.compile(
    r"\{\s*([^{}\\]{1,60})\\over(?![A-Za-z])\s*([^{}\\]{1,60})\}|\A\s*([^{}\\]{1,60})\\over(?![A-Za-z])\s*([^{}\\]{1,60})\Z"
)
#: Groups of three digits after a separator that only numbers have: `{,}`, a space or an underscore.
_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3})((?:(?:\{,\}|[ _])\d{3})+)(?! ?\d)")
_COMMA_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?!\d|,\d)")
_BRACKETS = re.compile(r"\\?[\[({]|\\?[\])}]")
_QUOTED = re.compile(r"(\"|'{1,2}|\*{1,3}|__|_)(?![\s*_'\"])([^\"*_]+?)(?<!\s)\1")


def rewrite(text: str) -> str:
    """One answer in plain notation; what is not recognised stays as it is."""
    text = _without_marks(to_latex(text))
    text = _COLOUR.sub("", _PHANTOM.sub("", text))
    text = _join_inverse_spaces(text)
    text = rename_commands(text)
    text = complete_arguments(_OVER.sub(_fraction_over, escape_function_names(text)))
    text = _DEGREES.sub(r"^\\circ ", text)
    text = _CURRENCY_CODE.sub("", _STYLED_DOLLAR.sub(r"\\$", text))
    text = _COLON.sub(":", _SEMICOLON_PAIR.sub(r"\1\2,\3\4", text))
    text = _TYPED_POWER.sub(r"^{\1}", text)
    text = _STYLED_NUMBER.sub(r"\1", text)
    text = _without_separators(text)
    text = _numbers(text)
    text = _UPRIGHT_LETTER.sub(lambda found: found[found.lastindex], text)
    text = text.strip()
    if whole := _OUTER_TEXT.fullmatch(text):
        text = whole[1]
    if builder := _SET_BUILDER.fullmatch(text):
        text = builder[2].strip()
    if member := _MEMBER.match(text):
        text = text[member.end() :]
    return without_end_marks(plain_wording(without_end_marks(text)))


def _numbers(text: str) -> str:
    """Numbers in other notations: powers of ten, mixed numbers, repeating decimals, minutes of arc."""
    text = _LETTER_TIMES.sub(r"\\times ", text)
    text = _EXPONENT.sub(r"\1\\times 10^{\2}", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _PERCENT_OF_MIXED.sub(_mixed_percent, text)
    text = _REPEATING.sub(_repeating_decimal, text)
    text = _DOTTED.sub(_repeating_decimal, text)
    text = _ARC_MINUTES.sub(r"\1\\frac{\2}{60}^\\circ ", text)
    return _ANGLE_OF_FUNCTION.sub(lambda found: rf"{found[1]}(\frac{{{found[2] or found[3]}\pi}}{{180}})", text)


def _fraction_over(found: re.Match[str]) -> str:
    above, below = (found[1], found[2]) if found[1] else (found[3], found[4])
    return rf"\frac{{{above}}}{{{below}}}"


def _mixed_percent(found: re.Match[str]) -> str:
    sign, whole, numerator, denominator = found.groups()
    return rf"{sign}\frac{{{int(whole) * int(denominator) + int(numerator)}}}{{{int(denominator)}}}\%"


def _repeating_decimal(found: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as a fraction: (16 - 1) / 90."""
    whole, fixed, period = found.groups()
    before, scale = int(f"{whole}{fixed}" or 0), 10 ** len(fixed)
    numerator = before * (10 ** len(period) - 1) + int(period)
    return rf"\frac{{{numerator}}}{{{scale * (10 ** len(period) - 1)}}}"


def _join_inverse_spaces(text: str) -> str:
    r"""`10,\!080` and `11,\! 111`: a comma that is drawn close belongs to a number."""
    return re.sub(r",\\!\s?(?=\d{3})", "{,}", text)


def _without_separators(text: str) -> str:
    """Separators of thousands: always `{,}` and a space; a comma only where it cannot separate a list."""
    text = _GROUPED.sub(lambda found: found[1] + re.sub(r"\D", "", found[2]), text)

    def join(found: re.Match[str]) -> str:
        groups = found[2].split(",")[1:]
        # No number of a list begins with 0; and outside brackets math-verify too reads 1,234 as one number.
        if any(group[0] == "0" for group in groups) or not _is_in_brackets(text, found.start()):
            return found[1] + "".join(groups)
        return found[0]

    return _COMMA_GROUPED.sub(join, text)


def _is_in_brackets(text: str, position: int) -> bool:
    depth = 0
    for bracket in _BRACKETS.finditer(text, 0, position):
        if bracket[0] not in ("{", "}"):  # Bare braces only group; \{ and \} are a set's.
            depth += 1 if bracket[0][-1] in "([{" else -1
    return depth > 0


def _without_marks(text: str) -> str:
    """Without outer white space, dollar signs, quotation marks and emphasis."""
    text = strip_spaces(text)
    for delimiter in ("$$", "$"):
        if len(text) > 2 * len(delimiter) and text.startswith(delimiter) and text.endswith(delimiter):
            inner = text[len(delimiter) : -len(delimiter)]
            text = inner if "$" not in inner and not inner.endswith("\\") else text
    quoted = _QUOTED.fullmatch(text)
    return strip_spaces(quoted[2] if quoted else text)
