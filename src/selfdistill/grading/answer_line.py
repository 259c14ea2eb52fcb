r"""The answer that a completion states in words: "Answer: 42", "**Final answer**\n\n$42$", "so my answer is 42 cm."."""

from __future__ import annotations

import re

#: Where an answer is announced: a heading or label, or a sentence. `isn't`, `is not`
#: and `is unique` announce none.
_CUE = re.compile(
    r"""
      \b(?:answers?|ans)\b(?:[ ]\([^()\n]{1,40}\))?[*_]{0,4}
      (?:\s{0,3}[:=\u2192]|[ ]{0,3}[-\u2013\u2014](?=[ ]))
    | \b(?:answers?|result)[*_]{0,2}(?:,[ ]\w{1,15},)?
      (?:[ ](?:to|for|of)[ ][^.:\n]{1,60}?)??
      [ ]{1,3}(?:is|are|was|equals|must[ ]be|should[ ]be|would[ ]be|will[ ]be|comes[ ]out[ ](?:to[ ]be|as)|becomes|=)
      (?![ ](?:not|never|unclear|unknown|wrong|incorrect|unique|clear|obvious|correct|right|valid|reasonable)\b)
      (?![\w'\u2019])
    | (?:^|\n)[ ]{0,3}[#*]{1,6}[ ]?(?:final[ ]|the[ ])?answer[ ]?[*#:]{0,6}[ ]*(?=\n|\Z)
    | <answer>
    | (?:^|\n)[#]{4}[ ]
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: Characters read after an announcement.
_READ = 400
_SPAN = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_LEAD = re.compile(
    r"(?:[\s*_:#>`=\u2013\u2014]|(?:therefore|thus|then|simply|just|indeed|clearly|now|given[ ]by|equal[ ]to|"
    r"again|still|exactly|found[ ]to[ ]be|as[ ]follows)\b,?)*",
    re.IGNORECASE,
)
#: What follows is an explanation: a clause, a remark in brackets, the next sentence.
_EXPLANATION = re.compile(
    r"[.!?]?\s+\(\s*[A-Za-z]{2,}|[.;!?](?=\s|\*|$)|,?\s+(?:because|since|as|which|where|so|but|when|hence|for|by|due)\b|</"
    r"|,\s+(?:and\s+(?:so|thus|this|that|it|we|the)\b|not\b|thus\b)|\s+[\u2013\u2014]\s|\s--?\s+[A-Za-z]",
    re.IGNORECASE,
)


def extract_answer_line(text: str) -> str:
    """What the last announcement of an answer announces, without emphasis, dollar signs and explanation; "" for none.

    The answer may stand on a later line, and be followed by a reason.
    """
    for cue in reversed(list(_CUE.finditer(text))):
        answer = _first_statement(text[cue.end() : cue.end() + _READ])
        if answer:
            return answer
    return ""


def _first_statement(text: str) -> str:
    text = text[_LEAD.match(text).end() :]
    masked, spans = _mask_formulas(text)
    line = masked.split("\n", 1)[0]
    stop = _EXPLANATION.search(line)
    line = line[: stop.start()] if stop else line
    for place, formula in enumerate(spans):
        line = line.replace(_mark(place), formula)
    return line.replace("**", "").replace("$", "").strip(" \t*_`").removesuffix(".").strip(" \t*_`")


def _mask_formulas(text: str) -> tuple[str, list[str]]:
    """Formulas as single marks, so that a stop, a line end or a bracket inside them ends nothing."""
    spans: list[str] = []

    def keep(found: re.Match[str]) -> str:
        spans.append(" ".join(next(part for part in found.groups() if part is not None).split()))
        return _mark(len(spans) - 1)

    return _SPAN.sub(keep, text), spans


def _mark(place: int) -> str:
    return f"\x00{place}\x00"
