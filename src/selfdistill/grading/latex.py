r"""LaTeX commands under one name each, with their arguments in braces: `\dfrac\pi2` as `\frac{\pi}{2}`."""

from __future__ import annotations

import re

#: One LaTeX command, or an escaped character; `\\` is the end of a matrix row and must stay.
_COMMAND = re.compile(r"\\(?:\\|[A-Za-z]+|.)", re.DOTALL)
_RENAMED = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\nicefrac": r"\frac", r"\sfrac": r"\frac",
    r"\flatfrac": r"\frac", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\langle": "(", r"\rangle": ")", r"\lparen": "(",
    r"\rparen": ")", r"\lbrack": "[", r"\rbrack": "]", r"\varnothing": r"\emptyset", r"\bigcup": r"\cup ",
    r"\degree": r"^\circ ", r"\degrees": r"^\circ ", r"\geqslant": r"\ge", r"\leqslant": r"\le", r"\geq": r"\ge",
    r"\leq": r"\le", r"\neq": r"\ne", r"\gt": ">", r"\lt": "<", r"\mbox": r"\text", r"\textrm": r"\text",
    r"\textnormal": r"\text", r"\textbf": r"\text", r"\textit": r"\text", r"\textsf": r"\text", r"\emph": r"\text",
    r"\,": " ", r"\;": " ", r"\:": " ", r"\>": " ", r"\ ": " ", r"\quad": " ", r"\qquad": " ", r"\!": "",
    r"\dots": r"\ldots", r"\colon": ":",
    r"\tbinom": r"\binom", r"\dbinom": r"\binom", r"\lvert": "|", r"\rvert": "|", r"\vert": "|",
    r"\R": r"\mathbb{R}", r"\Reals": r"\mathbb{R}", r"\infin": r"\infty", r"\cent": r"\text{ cents}", r"\euro": "",
    **dict.fromkeys((
        r"\boldsymbol", r"\bm", r"\underline", r"\displaystyle", r"\textstyle", r"\limits", r"\bf", r"\rm", r"\large",
        r"\Large", r"\big", r"\Big", r"\bigg", r"\Bigg", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr", r"\biggl", r"\biggr",
        r"\Biggl", r"\Biggr", r"\bigm", r"\Bigm", r"\mathstrut", r"\strut", r"\bullet", r"\checkmark", r"\blacksquare",
        r"\therefore", r"\Rightarrow", r"\implies", r"\Longrightarrow", r"\rightarrow", r"\mathopen", r"\mathclose",
    ), " "),
}  # fmt: skip
_FUNCTIONS = (
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp",
    "sqrt", "gcd", "det",
)  # fmt: skip
#: Names of functions and constants as they are typed on a keyboard; not inside words or after a backslash.
_TYPED = re.compile(
    rf"(?<![\\A-Za-z])(?:({'|'.join(_FUNCTIONS)})(?=\s*[\d(^\\_{{]|\s+[A-Za-z](?![A-Za-z]))|(pi|theta|infinity|infty|oo)(?![A-Za-z(]))"
)
_CONSTANTS = {"pi": r"\pi ", "theta": r"\theta ", "infinity": r"\infty ", "infty": r"\infty ", "oo": r"\infty "}
_OPERATOR = re.compile(rf"\\(?:operatorname\*?|mathrm|text)\s*\{{\s*({'|'.join(_FUNCTIONS)})\s*\}}")
_STYLED_INFINITY = re.compile(r"\\(?:text|mathrm)\s*\{\s*([+-]?)\s*(?:positive\s+)?infinity\s*\}", re.IGNORECASE)
_NATURAL_LOGARITHM = re.compile(r"\\log\s*_\s*(?:e(?![A-Za-z])|\{\s*(?:e|\\mathrm\{e\})\s*\})\s*")
_STYLED_PI = re.compile(r"\\(?:text|mathrm)\s*\{\s*(?:pi|π)\s*\}")
_TEXT = re.compile(r"(\\(?:text|mathrm|operatorname)\s*\{[^{}]*\})")
#: Commands with arguments, and how many.
_TAKING = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])")
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_DEEPEST = 12


def rename_commands(text: str) -> str:
    """Synonymous commands under one name; layout becomes a space, or nothing."""
    text = _COMMAND.sub(lambda found: _RENAMED.get(found[0], found[0]), text).replace("~", " ")
    text = _NATURAL_LOGARITHM.sub(r"\\ln ", text)
    return _OPERATOR.sub(r"\\\1 ", _STYLED_PI.sub(r"\\pi ", _STYLED_INFINITY.sub(r"\1\\infty ", text)))


def escape_function_names(text: str) -> str:
    r"""`sqrt(2)`, `pi/4` and `ln 2` with their backslashes, outside of `\text{...}`; `**` as `^`."""
    parts = _TEXT.split(text)
    parts[::2] = [
        _TYPED.sub(lambda found: f"\\{found[1]} " if found[1] else _CONSTANTS[found[2]], part).replace("**", "^")
        for part in parts[::2]
    ]
    return "".join(parts)


def complete_arguments(text: str, depth: int = 0) -> str:
    r"""Arguments in braces: `\frac\pi2`, `\frac1{2}`, `\sqrt13` (of 13: nobody means of 1, times 3), `\sqrt(2)`."""
    done: list[str] = []
    place = 0
    for command in _TAKING.finditer(text):
        if command.start() < place:
            continue
        done.append(text[place : command.start()])
        end, written = _with_arguments(text, command, depth)
        done.append(written)
        place = end
    return "".join(done) + text[place:]


def _with_arguments(text: str, command: re.Match[str], depth: int) -> tuple[int, str]:
    """(where the arguments end, the command with them in braces); as it is where they cannot be read."""
    place, written = command.end(), command[0]
    if command[1] == "sqrt":
        index = re.compile(r"\s*\[([^\[\]]*)\]").match(text, place)
        if index:
            place, written = index.end(), f"{written}[{index[1]}]"
    for _ in range(1 if command[1] == "sqrt" else 2):
        argument = _argument(text, place, is_root=command[1] == "sqrt")
        if argument is None:
            return command.end(), command[0]
        place, content = argument
        written += "{" + (complete_arguments(content, depth + 1) if depth < _DEEPEST else content) + "}"
    return place, written


def _argument(text: str, place: int, is_root: bool) -> tuple[int, str] | None:
    """(end, content) of the argument that begins at `place`: a group, a command, digits or one character."""
    while place < len(text) and text[place] in " \t\n":
        place += 1
    if place == len(text) or text[place] in "}])^_&,":
        return None
    if text[place] == "{" or (is_root and text[place] == "("):
        end = _closing(text, place)
        return None if end is None else (end, text[place + 1 : end - 1])
    if text[place] == "\\":
        nested = _TAKING.match(text, place)
        if nested:
            end, written = _with_arguments(text, nested, _DEEPEST)
            return (end, written) if end > nested.end() else None
        command = _COMMAND.match(text, place)
        return (command.end(), command[0]) if command and command[0][1:].isalpha() else None
    digits = _DIGITS.match(text, place) if is_root else None
    if digits:
        return digits.end(), digits[0]
    return (place + 1, text[place]) if text[place].isalnum() else None


def _closing(text: str, start: int) -> int | None:
    """The place after the bracket that closes the one at `start`."""
    opening, closing = ("{", "}") if text[start] == "{" else ("(", ")")
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "{}" and text[place - 1] == "\\":
            continue
        depth += {opening: 1, closing: -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return None
