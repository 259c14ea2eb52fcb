"""What math-verify's verdict is worth: values compared by relative distance, and identities at many points.

math-verify compares to six decimal places, so 1.6e-19 equals 6.6e-34 to it; and takes variables as any real number, so
sqrt(a)/sqrt(b) differs from sqrt(a/b). Runs in the worker processes, on what math-verify has parsed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

#: Relative distance from which two values differ, where one is written as a decimal.
DECIMAL_DISTANCE = 2e-5
_DIGITS = 60
_EXACT_DISTANCE = 1e-40
#: Integers beyond this differ in digits that are not computed.
_LARGEST = 1e30
#: Points where expressions are compared: real, of both signs, and no special values of common functions.
_POINTS = (
    (0.7368, 1.9137, 2.4179, 0.3913, 3.1713, 1.1937), (2.3819, 0.5713, 1.2391, 4.1893, 0.8171, 2.9137),
    (5.1371, 3.7919, 0.1937, 1.6179, 2.2713, 0.6917), (-1.3719, 2.1793, -0.8137, 3.4191, -2.7139, 0.9173),
    (1.8193, -0.6371, 3.1973, -1.2917, 0.4391, -3.3717), (-2.9173, -1.1379, -0.4719, -2.6193, -1.7931, -0.3917),
    (0.1379, 7.3919, 5.7193, 0.2713, 6.1937, 8.3719), (9.1733, 0.0719, 8.4137, 6.9173, 0.1193, 4.7391),
    (-0.2917, -6.1379, 4.3719, 7.1937, -5.9137, -4.1793), (-7.3193, 5.2371, -3.6179, -0.1719, 9.3713, 1.4193),
)  # fmt: skip
_LEAST_POINTS = 3


def is_same(gold: Any, answer: Any) -> bool | None:
    """Whether two parsed answers have the same value; None where this cannot tell."""
    from sympy import Basic, Interval, MatrixBase

    if not all(isinstance(side, (Basic, MatrixBase)) for side in (gold, answer)):
        return None
    gold, answer = _values_of_assignments(gold, answer)
    entries, others = _entries(gold), _entries(answer)
    if entries is None and others is None:
        return _is_same_expression(gold, answer)
    if entries is None or others is None or len(entries) != len(others):
        return None
    if getattr(gold, "shape", None) != getattr(answer, "shape", None):
        return None
    if _is_unordered(gold) or _is_unordered(answer):
        return _match_entries(entries, others)
    same = _conjunction(_is_same_expression(one, other) for one, other in zip(entries, others, strict=True))
    # (1, 2] has the ends of (1, 2): equal entries say nothing of brackets.
    return same if type(gold) is type(answer) and not isinstance(gold, Interval) else same and None


def _values_of_assignments(gold: Any, answer: Any) -> tuple[Any, Any]:
    """5 of `x = 5`, where one side names the variable or both the same."""
    from sympy import Eq, Symbol

    names = [
        side.lhs.name if isinstance(side, Eq) and isinstance(side.lhs, Symbol) else None for side in (gold, answer)
    ]
    if None not in names and names[0] != names[1]:
        return gold, answer
    return tuple(side if name is None else side.rhs for side, name in zip((gold, answer), names, strict=True))


def _entries(side: Any) -> list[Any] | None:
    """The members of a list, set, pair, matrix or interval; None for a single expression."""
    from sympy import FiniteSet, Interval, MatrixBase, Tuple

    if isinstance(side, MatrixBase):
        return list(side)
    if isinstance(side, Interval):
        return [side.start, side.end]
    return list(side.args) if isinstance(side, (Tuple, FiniteSet)) or type(side).__name__ == "FiniteSet" else None


def _is_unordered(side: Any) -> bool:
    return type(side).__name__ == "FiniteSet"


def _match_entries(entries: Sequence[Any], others: Sequence[Any]) -> bool | None:
    """False where some member certainly has no equal on the other side."""
    verdicts = [[_is_same_expression(one, other) for other in others] for one in entries]
    if any(all(verdict is False for verdict in row) for row in [*verdicts, *zip(*verdicts, strict=True)]):
        return False
    return None


def _conjunction(verdicts: Iterator[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True


def _is_same_expression(gold: Any, answer: Any) -> bool | None:
    from sympy import Expr

    gold, answer = _values_of_assignments(gold, answer)
    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return None
    if gold == answer:
        return True
    gold, answer = _with_imaginary_unit(gold), _with_imaginary_unit(answer)
    if gold.free_symbols or answer.free_symbols:
        return _is_identity(gold, answer)
    if gold.is_Rational and answer.is_Rational:
        return gold == answer
    is_decimal = _has_decimal(gold) or _has_decimal(answer)
    if is_decimal and _is_near(_value(_as_written(gold)), _value(_as_written(answer)), False):
        return True
    same = _is_near(_value(gold), _value(answer), is_decimal)
    if same is not False:
        return same
    # 50 % may answer 50, and 0.5: math-verify accepts both, by convention.
    bare, other = _without_percent(gold), _without_percent(answer)
    if (bare == gold) == (other == answer):
        return False
    return None if _is_near(_value(bare), _value(other), is_decimal) is not False else False


def _with_imaginary_unit(expression: Any) -> Any:
    from sympy import I

    return expression.subs({symbol: I for symbol in expression.free_symbols if symbol.name == "i"})


def _without_percent(expression: Any) -> Any:
    """The number before a per cent sign."""
    from sympy import Rational
    from sympy.core.expr import UnevaluatedExpr

    percent = UnevaluatedExpr(Rational(1, 100))
    return expression.replace(lambda part: part == percent, lambda _: 1)


def _has_decimal(expression: Any) -> bool:
    from sympy import Float

    return bool(expression.atoms(Float))


def _as_written(expression: Any) -> Any:
    """Decimals as the fractions that their digits say: 2^{0.5} is a root of two, 0.333333 is no third."""
    from sympy import Float, Rational

    return expression.replace(lambda part: isinstance(part, Float), lambda part: Rational(str(part)))


def _value(expression: Any) -> Any:
    """The number as mpmath's complex one; None where it has no value."""
    from mpmath import mp, mpc

    try:
        number = expression.doit().evalf(_DIGITS)
        with mp.workdps(_DIGITS):
            real, imaginary = number.as_real_imag()
            return mpc(*(part._to_mpmath(mp.prec) for part in (real, imaginary)))
    except Exception:  # Infinity, undefined functions, sums that do not converge.
        return None


def _is_near(one: Any, other: Any, is_decimal: bool) -> bool | None:
    """False for values that differ; of decimals, and of numbers with more digits than are computed, never True."""
    from mpmath import isfinite, mp

    if one is None or other is None or not (isfinite(one) and isfinite(other)):
        return None
    with mp.workdps(_DIGITS):
        largest = max(abs(one), abs(other))
        if abs(one - other) > (DECIMAL_DISTANCE if is_decimal else _EXACT_DISTANCE) * largest:
            return False
        return None if is_decimal or largest > _LARGEST else True


def _is_identity(gold: Any, answer: Any) -> bool | None:
    """Whether two expressions agree wherever both are real, at points of both signs; None where they rarely are.

    Roots and logarithms of negative numbers are not real, though the product of two such roots is.
    """
    from sympy import lambdify

    names = sorted({symbol.name for symbol in gold.free_symbols | answer.free_symbols})
    if len(names) > len(_POINTS[0]) or {s.name for s in gold.free_symbols} != {s.name for s in answer.free_symbols}:
        return None
    is_decimal = _has_decimal(gold) or _has_decimal(answer)
    try:
        functions = [
            lambdify(
                sorted(side.free_symbols, key=lambda symbol: symbol.name), [side.doit(), *_radicands(side)], "mpmath"
            )
            for side in (gold, answer)
        ]
    except Exception:  # Functions without a numerical form.
        return None
    compared = 0
    for point in _POINTS:
        values = [_real_value(function, point[: len(names)]) for function in functions]
        if None not in values:
            compared += 1
            if _is_near(*values, is_decimal) is False:
                return False
    return True if compared >= _LEAST_POINTS and not is_decimal else None


def _radicands(expression: Any) -> list[Any]:
    """What stands under roots and logarithms."""
    from sympy import Pow, log

    roots = [power.base for power in expression.atoms(Pow) if power.exp.is_Rational and not power.exp.is_Integer]
    return [*roots, *(part.args[0] for part in expression.atoms(log))]


def _real_value(function: Any, point: Sequence[float]) -> Any:
    from mpmath import isfinite, mp, mpc

    with mp.workdps(_DIGITS):
        try:
            value, *radicands = map(mpc, function(*map(mp.mpf, point)))
        except Exception:
            return None
        if any(radicand.imag or radicand.real < 0 for radicand in radicands):
            return None
        return value.real if isfinite(value) and abs(value.imag) <= abs(value.real) * mp.mpf(10) ** -50 else None
