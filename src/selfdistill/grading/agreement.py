r"""Where two answers in plain notation can be told equal or unequal without algebra (docs/method.md 12.3).

math-verify reads some answers as what they are not: 52_8 as 52, `> 204` as 204, the word "true" as a truth value, two
small decimals as equal because they agree in six places, the variable in `3t` as tons. Here such pairs are decided, or
written so that it reads them rightly. None means: ask math-verify.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from selfdistill.grading.intervals import as_intervals
from selfdistill.grading.quantities import split_quantity
from selfdistill.grading.quick import read_number
from selfdistill.grading.variables import ends_in_variables, with_variables
from selfdistill.grading.wording import contrary_words, list_words_as_commas, split_modulus

Verdict = Literal["correct", "wrong"]

_DECIMAL = re.compile(r"([+-]?)\s*(\d{0,40})(?:\.(\d{1,40}))?")
_BASE = re.compile(r"[({]?([0-9A-Za-z]{1,64}?)[)}]?_(?:(\d)|\{\(?(\d{1,2})\)?\}|\{?\\text\{\s*([a-z]+)\s*\}\}?)")
_BASE_NAMES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen",
)  # fmt: skip
_BASE_IN_WORDS = re.compile(r"([0-9A-Za-z]{1,64}?)\s*(?:\\text\{\s*)?\(?(?:in )?base[ -]?(\d{1,2})\)?\s*\}?")
_TIME = re.compile(r"(\d{1,2})\{?:\}?(\d{2})(?:\s*(?:\\text\{)?\s*([ap])\.?\s?m\.?\s*\}?)?", re.IGNORECASE)
_STYLED = re.compile(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’-]+[^\W\d_]+)*")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_CHOICE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer):?\s*)?\(?([A-Za-z])\)?")
_MINUTES = re.compile(r"-?[\d.]+'{1,2}")
_ARTICLE = re.compile(r"(?:a|an|the) (?=.)")
_LABEL = re.compile(r"\s*(?:\\text\{\s*)?(?:\(([A-J])\)|([A-J])[.)])\s*(\}?)\s*(?=\S)")
_ANOTHER_LABEL = re.compile(r"\([A-J]\)|\A\s*[A-J]\b")
_ANGLE = re.compile(r"(?<![\d.])(-?\d{1,4}(?:\.\d{1,4})?)\^\\circ\s*")
_SIGN = re.compile(r"<|>|\\(?:le|ge|ne|notin|not|nless|ngtr|ll|gg)(?![A-Za-z])")
_BARE_SIGN = re.compile(r"(?:<|>|\\(?:le|ge|ne)(?![A-Za-z])|=)\s*")
_RELATION_OF = re.compile(r"([A-Za-z])\s*(?=<|>|\\(?:le|ge|ne)(?![A-Za-z]))")
_NAMED_POINT = re.compile(r"[A-Z]'{0,2}\s*=?\s*(?=(?:\\left)?\s*\()")
_ONE_PAIR = re.compile(r"(?:\\left)?\s*[\[(][^()\[\]]*,[^()\[\]]*[\])]")
_POINTS = re.compile(r"[A-Z]{3,8}")
_LAST_EQUATION = re.compile(r"[^=<>]*[-+*/^!(\\][^=<>]*=([^=<>]+)")
_CONDITION = re.compile(r"[^=<>]+(?:=|<|>|\\[lg]e(?![A-Za-z]))[^=<>]+")
_SYNONYMS = {
    "all real numbers": "real numbers", "all reals": "real numbers", "the real numbers": "real numbers",
    "every real number": "real numbers", "any real number": "real numbers", "reals": "real numbers",
    "no solutions": "no solution", "no real solutions": "no real solution", "there is no solution": "no solution",
    "there are no solutions": "no solution", "infinite": "infinitely many", "dne": "does not exist",
}  # fmt: skip
_NOTHING = ("no solution", "no real solution", "empty set")
_REALS = (r"\mathbb{R}", r"(-\infty,\infty)", r"(-\infty,+\infty)")


def decide(answer: str, gold: str) -> Verdict | None:
    """The verdict on two rewritten answers, where it needs no algebra."""
    if answer == gold:
        return "correct"
    for rule in (_compare_numbers, _compare_bases, _compare_times, _compare_words, _compare_labels, _compare_signs):
        if (verdict := rule(answer, gold)) is not None:
            return verdict
    if contrary_words(answer) != contrary_words(gold):
        return "wrong"
    if re.fullmatch("[A-Z]", gold) and gold not in answer:
        return "wrong"  # The letter E, which math-verify takes for the number e.
    if _differ_in_case(answer, gold) or (r"\circ" in gold and _MINUTES.fullmatch(answer)):
        return "wrong"
    if _POINTS.fullmatch(answer) and _POINTS.fullmatch(gold):
        return "wrong"  # Points, whose order counts: math-verify would multiply them.
    return "wrong" if {_brackets(answer), _brackets(gold)} == {"set", "tuple"} else None


def align(answer: str, gold: str) -> tuple[str, str]:
    """Both sides so written that math-verify reads the answer in the sense of the gold answer."""
    if ends_in_variables(gold):
        return with_variables(answer), with_variables(gold)
    answer, gold = _without_label(answer, gold), _without_label(gold, answer)
    (answer, modulus), (gold, wanted) = split_modulus(answer), split_modulus(gold)
    if modulus and wanted and modulus != wanted:
        return rf"{answer}\pmod{{{modulus}}}", rf"{gold}\pmod{{{wanted}}}"
    answer = _with_variable_of(gold, _conclusion(answer, gold))
    if _is_interval_like(gold):
        answer, gold = as_intervals(answer), as_intervals(gold)
    elif _is_interval_like(answer):
        gold = as_intervals(gold)
    answer, gold = list_words_as_commas(answer), list_words_as_commas(gold)
    if r"\pi" in gold and r"\circ" not in gold and "," in gold:
        answer = _ANGLE.sub(r"\\frac{\1\\pi}{180}", answer)
    if _brackets(gold) == "tuple":
        answer = _NAMED_POINT.sub("", answer, count=1) if _NAMED_POINT.match(answer) else answer
    if gold.startswith(r"\begin{pmatrix}") and "&" not in gold and _brackets(answer) == "tuple":
        # A column vector may be written in a line.
        entries = answer.removeprefix(r"\left").strip()[1:-1].removesuffix(r"\right").split(",")
        answer = r"\begin{pmatrix}" + r" \\ ".join(entries) + r"\end{pmatrix}"
    if answer.startswith(r"\begin{pmatrix}") and "&" not in answer and _brackets(gold) == "tuple":
        answer = "(" + ",".join(answer[len(r"\begin{pmatrix}") :].split(r"\end")[0].split(r"\\")) + ")"
    return split_quantity(answer, gold)


def _compare_numbers(answer: str, gold: str) -> Verdict | None:
    """Integers and decimals exactly; a decimal comma where no list is wanted and the value is the gold answer's."""
    if re.fullmatch(r"-?\d{1,15},\d{1,6}", answer) and _is_value_of_decimal_comma(answer, gold):
        return "correct"
    wanted = _plain_number(gold)
    if wanted is None:
        return None
    given = _plain_number(answer)
    if given is None and re.fullmatch(r"\d{1,2}(?:,\d{2})+,\d{3}", answer):
        given = _plain_number(answer.replace(",", ""))
    return None if given is None else "correct" if given == wanted else "wrong"


def _is_value_of_decimal_comma(answer: str, gold: str) -> bool:
    value = read_number(gold)
    return value is not None and value == read_number(answer.replace(",", "."))


def _compare_bases(answer: str, gold: str) -> Verdict | None:
    """Equal digits in the same base; the base asked for is part of the answer."""
    given, wanted = _in_base(answer), _in_base(gold)
    if given and wanted:
        return "correct" if given == wanted else "wrong"
    if given and given[1] != 10 and _plain_number(gold) is not None:
        return "wrong"
    return None


def _compare_times(answer: str, gold: str) -> Verdict | None:
    """Equal times of day are correct; unequal ones may be ratios (6:20 and 3:10), unless both say a.m. or p.m."""
    given, wanted = _time(answer), _time(gold)
    if given is None or wanted is None:
        return None
    if given[0] == wanted[0] and ("" in (given[1], wanted[1]) or given[1] == wanted[1]):
        return "correct"
    return "wrong" if given[1] and wanted[1] else None


def _compare_words(answer: str, gold: str) -> Verdict | None:
    """Letters alone may be a product, xy or AB; words are known by their style on one side."""
    for words, other in ((_words(answer), gold), (_words(gold), answer)):
        if words in _NOTHING and other.replace(" ", "") in (r"\emptyset", r"\{\}"):
            return "correct"
        if words == "real numbers" and other.replace(r"\left", "").replace(r"\right", "").replace(" ", "") in _REALS:
            return "correct"
    if not (_STYLED.search(answer) or _STYLED.search(gold) or not answer.isascii() or not gold.isascii()):
        return None
    wanted, given = _words(gold), _words(answer)
    if wanted is None or given is None:
        return None
    return "correct" if given == wanted else "wrong"


def _compare_labels(answer: str, gold: str) -> Verdict | None:
    """`(C) 5` where the letter alone is wanted, or the letter where both are."""
    letter = _choice_letter(gold)
    label = _LABEL.match(answer)
    if letter and label:
        if _ANOTHER_LABEL.search(answer, label.end()):
            return "wrong"
        return "correct" if (label[1] or label[2]) == letter else "wrong"
    label = _LABEL.match(gold)
    if label and (letter := _choice_letter(answer)):
        return "correct" if (label[1] or label[2]) == letter else "wrong"
    if _choice_letter(gold) and len(gold) > 1:
        return "wrong"  # A styled or bracketed letter is no variable, so nothing else is equal to it.
    return None


def _compare_signs(answer: str, gold: str) -> Verdict | None:
    """An inequality is no number, and a number no inequality."""
    for one, other in ((answer, gold), (gold, answer)):
        if _SIGN.search(one) and not _SIGN.search(other) and not _is_interval_like(other) and _words(other) is None:
            return None if _is_side_condition(one) else "wrong"
    return None


def _is_side_condition(text: str) -> bool:
    """`x = 5, x > 0`: the inequality only limits what an equation says."""
    return "," in text and re.search(r"(?<![<>])=", text) is not None


def _plain_number(text: str) -> Fraction | None:
    """The exact value of an integer or decimal; other numbers are left to math-verify."""
    found = _DECIMAL.fullmatch(text)
    if not found or not (found[2] or found[3]):
        return None
    value = Fraction(f"{found[2] or 0}.{found[3] or 0}")
    return -value if found[1] == "-" else value


def _in_base(text: str) -> tuple[str, int] | None:
    """(digits, base) of a number with its base as subscript or in words."""
    if found := _BASE_IN_WORDS.fullmatch(text):
        return found[1].upper().lstrip("0"), int(found[2])
    found = _BASE.fullmatch(text)
    if not found or not found[1][0].isalnum() or not any(character.isdigit() for character in found[1]):
        return None
    if found[4] and found[4] not in _BASE_NAMES:
        return None
    base = _BASE_NAMES.index(found[4]) if found[4] else int(found[2] or found[3])
    return found[1].upper().lstrip("0"), base


def _time(text: str) -> tuple[int, str] | None:
    """Minutes since midnight or noon; and a, p, or "" where the half of the day is not told."""
    found = _TIME.fullmatch(text)
    if not found or int(found[1]) > 24 or int(found[2]) > 59:
        return None
    hours = int(found[1])
    return hours % 12 * 60 + int(found[2]), (found[3] or "").lower() or ("p" if hours > 12 else "")


def _words(text: str) -> str | None:
    """Lower-case words of an answer that is nothing but words, or a letter in brackets."""
    bare = _STYLED.sub(r"\1", text).strip().rstrip(".!").strip()
    if choice := _CHOICE.fullmatch(bare):
        bare = choice[1]
    if not _WORDS.fullmatch(bare):
        return None
    words = _ARTICLE.sub("", " ".join(bare.casefold().split()), count=1)
    return _SYNONYMS.get(words, words)


def _choice_letter(text: str) -> str | None:
    bare = _STYLED.sub(r"\1", text).strip()
    found = re.fullmatch(r"\(?([A-J])[.)]?", bare)
    return found[1] if found else None


def _without_label(text: str, other: str) -> str:
    r"""`\text{(C) } 5` without its label, unless the other side has one too."""
    label = _LABEL.match(text)
    if not label or _LABEL.match(other) or text.startswith("(") and "," in text[label.end() :]:
        return text
    rest = text[label.end() :]
    opened = text[: label.end()].count("{") - text[: label.end()].count("}")
    return rest if not opened else rest.replace("}", "", 1) if rest.count("}") > rest.count("{") else text


def _conclusion(answer: str, gold: str) -> str:
    r"""`m+n=204` of `\gcd(m,n)=1, m+n=204`: conditions, then what was asked for as an equation of an expression."""
    if "," in gold or "=" in gold or "=" not in answer:
        return answer
    *conditions, last = re.split(r"[,;]\s*(?![^()]*\))|\\text\s*\{[^{}]*\}|\s+and\s+|\s{2,}", answer)
    concluded = _LAST_EQUATION.fullmatch(last.strip())
    if conditions and concluded and all(not part.strip() or _CONDITION.fullmatch(part) for part in conditions):
        return concluded[1].strip()
    return answer


def _with_variable_of(gold: str, answer: str) -> str:
    r"""`\ge 3` as `x \ge 3` where the gold answer says so of x."""
    variable = _RELATION_OF.match(gold)
    if variable and _BARE_SIGN.match(answer):
        return f"{variable[1]} {answer}"
    return answer


def _differ_in_case(answer: str, gold: str) -> bool:
    """Whether the same variables stand there in another case, in an expression: r and R are two radii."""
    if not re.search(r"[\d+*/^=\\-]", gold):
        return False
    given, wanted = (set(re.findall(r"[A-Za-z]", _COMMAND.sub("", _STYLED.sub("", text)))) for text in (answer, gold))
    fold = {letter.casefold() for letter in wanted}
    return (
        given != wanted and {letter.casefold() for letter in given} == fold and len(given) == len(wanted) == len(fold)
    )


def _is_interval_like(text: str) -> bool:
    return r"\infty" in text or r"\cup" in text or _ONE_PAIR.fullmatch(text) is not None


def _brackets(text: str) -> Literal["set", "tuple"] | None:
    r"""What the outer brackets say: \{a, b\} or (a, b)."""
    text = text.replace(r"\left", "").replace(r"\right", "").strip()
    if text.startswith(r"\{") and text.endswith(r"\}") and not re.search(r"\\[{}]|[()\[\]]", text[2:-2]):
        return "set"
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1 and "," in text:
        return "tuple"
    return None
