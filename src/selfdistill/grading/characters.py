"""Unicode characters of answers as the LaTeX that they stand for."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ",
    "÷": r"\div ", "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ", "∓": r"\mp ", "≤": r"\le ",
    "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "√": r"\sqrt ", "∛": r"\sqrt[3] ", "⁄": "/", "∕": "/", "′": "'", "″": "''", "‖": r"\|", "⟨": "(", "⟩": ")",
    "€": "", "£": "", "¥": "", "¢": r"\text{ cents}", "`": "", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'",
    "…": r"\ldots ",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda", "μ": "mu",
    "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "ψ": "psi", "ω": "omega", "Γ": "Gamma",
    "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Σ": "Sigma", "Φ": "Phi", "Ω": "Omega",
}  # fmt: skip
_PARTS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
}  # fmt: skip
_CJK_SIGNS = dict(zip("。，；：（）［］％＝＋－＊／＜＞、｛｝　", ".,;:()[]%=+-*/<>,{} ", strict=True))
_SPACES = dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f", " ")
_INVISIBLE = dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\ufe0e\ufe0f")

_TABLE = str.maketrans(
    {
        **_SIGNS,
        **{letter: f"\\{name} " for letter, name in _GREEK.items()},
        **{part: rf"\frac{{{above}}}{{{below}}}" for part, (above, below) in _PARTS.items()},
        **_CJK_SIGNS, **_SPACES, **_INVISIBLE,
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)  # fmt: skip

_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ"
_LEVEL = str.maketrans(_RAISED + _LOWERED, "0123456789+-()ni" + "0123456789+-()n")
_RAISED_RUN, _LOWERED_RUN = re.compile(f"[{_RAISED}]+"), re.compile(f"[{_LOWERED}]+")


def to_latex(text: str) -> str:
    """Composed (NFC), without invisible characters, and with signs, Greek letters and full-width forms in LaTeX."""
    if text.isascii():
        return text.replace("`", "")
    text = unicodedata.normalize("NFC", text)
    text = _RAISED_RUN.sub(lambda run: f"^{{{run[0].translate(_LEVEL)}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{run[0].translate(_LEVEL)}}}", text)
    return text.translate(_TABLE)
