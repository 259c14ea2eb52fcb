r"""Words of an answer that are part of its meaning, as signs: `5\text{ or more}` is `\ge 5`, `2 million` is 2000000."""

from __future__ import annotations

import re
from fractions import Fraction

_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")
_INTRODUCTION = re.compile(
    r"(?:\\text\s*\{\s*)?(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|my|our)\s+)?(?:(?:final|correct)\s+)?"
    r"(?:answer|result)(?:\s+is\s*:?|\s*[:=])\s*(?:\}|(?=[^{}]*\Z)|(?=[^{}]*\\))",
    re.IGNORECASE,
)
_HEADING = re.compile(r"\A\\text\s*\{\s*[A-Za-z][A-Za-z ]{1,30}[:=]\s*\}\s*(?=[-\\\d($])")
_CJK_INTRODUCTION = re.compile(r"(?:(?:最终)?答案(?:是|为)?|结果(?:是|为)?|所以|因此)\s*:?\s*")
#: Signs of amount or doubt among the CJK words after a number; any other short word there is a counter or a unit.
_CJK_AMOUNT = "万亿兆千百十倍多以上下左右约余几不非无或至到双半又之分折成"
_CJK_UNIT = re.compile(rf"(?<=[\d}})])\s*(?![^\s]*[{_CJK_AMOUNT}])[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{{1,6}}\Z")
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_SCALE = re.compile(
    rf"(\d[\d.]*|\}})\s*(?:\\text\s*\{{\s*)?({'|'.join(_SCALES)})s?\b(?:\s*\}}|\s+([^{{}}\\]*)\}}|(?=[^{{}}]*\Z))",
    re.IGNORECASE,
)
_BEFORE = (
    ("\\ge ", r"at least|no less than|no fewer than|not less than|a minimum of|from at least"),
    ("\\le ", r"at most|no more than|not more than|up to|a maximum of"),
    ("> ", r"more than|greater than|larger than|over|above|exceeding"),
    ("< ", r"less than|fewer than|smaller than|under|below"),
    ("\\ne ", r"not equal to|not|anything but|any number but|all (?:real )?(?:numbers )?(?:except|but)"),
)
_AFTER = (
    ("\\ge ", r"(?:or|and) (?:more|greater|larger|above|over|higher|up)|at least|at minimum|minimum|\+"),
    ("\\le ", r"(?:or|and) (?:less|fewer|smaller|below|under|lower|down)|at most|at maximum"),
)
_NUMBER_LIKE = r"(?P<core>[-+\d\\$][^{}]*(?:\{[^{}]*\}[^{}]*){0,4}?)"
_PREFIXED = [(sign, re.compile(rf"(?:{words})\s+{_NUMBER_LIKE}\Z", re.IGNORECASE)) for sign, words in _BEFORE]
_SUFFIXED = [(sign, re.compile(rf"{_NUMBER_LIKE}\s+(?:{words})\Z", re.IGNORECASE)) for sign, words in _AFTER]
_HAS_QUALIFIER = re.compile(
    r"\b(?:least|most|more|less|fewer|greater|larger|smaller|higher|lower|over|under|above|below|up|than|not|minimum|"
    r"maximum|exceeding|except|but|down)\b",
    re.IGNORECASE,
)
_MODULUS = re.compile(
    r"(?P<core>.*?\d)\s*(?:\\pmod\s*(?:\{(?P<a>\d{1,12})\}|(?P<b>\d))|(?:\(\s*(?:\\text\{\s*)?|\\text\{\s*\(\s*)\\?mod(?:ulo)?\s*\}?\s*(?P<c>\d{1,12})\s*\}?\s*\)\s*\}?|"
    r"\\bmod\s*\{?(?P<d>\d{1,12})\}?|\\?mod\s*\{?(?P<e>\d{1,12})\}?)",
    re.DOTALL,
)
_CONGRUENCE = re.compile(r"(?:[A-Za-z](?:_\{?\w\}?)?|[A-Za-z0-9^+*{} -]{1,20})\s*(?:\\equiv|=)\s*(?=-?\d)")
_LIST_WORD = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s)\s*")
_LIST_ENTRY_START = re.compile(r"\s*[-+\d\\(\[A-Za-z]")
_SIDE_NOTE = re.compile(
    r"\s*(?:\\text\s*\{\s*)?\(\s*(?:since|because|as|where|with|see|by|from|in|per|approx|approximately|exact|exactly|units?)\b[^()]*\)\s*\}?\Z",
    re.IGNORECASE,
)
#: Words that make another statement of a number, or deny it.
_CONTRARY = frozenset(
    ("not", "no", "never", "neither", "nor", "isn't", "wrong", "incorrect", "false", "except", "without",
     "cannot", "impossible", "undefined", "more", "less", "fewer", "least", "most", "greater", "smaller",
     "over", "under", "above", "below", "than", "half", "twice", "double", "triple", "times", "thousand",
     "million", "billion", "trillion", "hundred", "dozen", "hundreds", "thousands", "millions", "billions",
     "dozens", "percent", "minus", "plus", "negative", "squared", "cubed", "factorial", "remainder", "between",
     "through", "until", "outside", "nothing", "none", "unknown", "maybe", "either")
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z']{2,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_PERCENT = re.compile(r"(?<=[\d}])\s*(?:\\text\s*\{\s*)?(?:percent|per cent|pct)\s*\}?\Z", re.IGNORECASE)


def plain_wording(text: str) -> str:
    """An answer without its introduction and side notes; amounts in words as numbers, comparisons in words as signs."""
    text = _CJK_UNIT.sub("", _CJK_INTRODUCTION.sub("", text, count=1)) if not text.isascii() else text
    introduction = _INTRODUCTION.match(text)
    if introduction and introduction.end() < len(text):
        text = text[introduction.end() :]
    text = _PERCENT.sub(r"\\%", _SIDE_NOTE.sub("", _HEADING.sub("", text)))
    if "\\pm" not in text:
        text = _SCALE.sub(_scaled, text)
    if _HAS_QUALIFIER.search(text) or text.endswith("+"):
        text = _with_sign(text)
    return text.strip()


def split_modulus(text: str) -> tuple[str, int | None]:
    r"""(residue, modulus) of `n \equiv 4 \pmod{7}` or `4 \pmod{7}`; (text, None) for anything else."""
    found = _MODULUS.fullmatch(text)
    if not found:
        return text, None
    core = _CONGRUENCE.sub("", found["core"], count=1).strip()
    modulus = int(next(value for name, value in found.groupdict().items() if name != "core" and value))
    if (found["d"] or found["e"]) and core.isdigit() and modulus:
        return str(int(core) % modulus), modulus  # The remainder operator, not a congruence.
    return core, modulus


def list_words_as_commas(text: str) -> str:
    r"""`3 \text{ and } 5` and `x=3 or x=5` as lists with commas."""
    parts = _LIST_WORD.split(text)
    if len(parts) == 1 or not all(_LIST_ENTRY_START.match(part) for part in parts):
        return text
    return ", ".join(part.strip() for part in parts)


def contrary_words(text: str) -> frozenset[str]:
    """Words of an answer that change what its number says."""
    words = _WORD.findall(_COMMAND.sub(" ", text).lower().replace("n't", " not"))
    return frozenset(word for word in words if word in _CONTRARY)


def _scaled(found: re.Match[str]) -> str:
    number, scale, rest = found[1], _SCALES[found[2].lower()], found[3]
    unit = rf"\text{{ {rest}}}" if rest else ""
    if number == "}":
        return rf"}}\cdot {scale}{unit}"
    try:
        value = Fraction(number) * scale
    except ValueError:
        return found[0]
    return (str(value) if value.denominator == 1 else rf"{number}\cdot {scale}") + unit


def _with_sign(text: str) -> str:
    bare = " ".join(_TEXT.sub(r" \1 ", text).split())
    for sign, pattern in _PREFIXED:
        if found := pattern.fullmatch(bare):
            return f"{sign}{found['core'].strip()}"
    for sign, pattern in _SUFFIXED:
        if found := pattern.fullmatch(bare):
            return f"{sign}{found['core'].strip()}"
    if found := re.fullmatch(r"(-?\d[\d.]*)\s*\+", bare):
        return f"\\ge {found[1]}"
    return text
