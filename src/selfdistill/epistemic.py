"""Epistemic words in text: counts per word, and their density (docs/method.md 10).

Two rules. `substring` is the paper's: lower-case the text, then count non-overlapping occurrences of each word,
wherever they stand ("unlikely" holds likely). `word` counts an occurrence only where no letter, digit or underscore
touches it, in any script. The paper reports raw counts per completion; density removes the effect of length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

Mode = Literal["substring", "word"]

#: The ten words of the paper (docs/method.md 10), in its order.
PAPER_WORDS = (
    "wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check",
)  # fmt: skip

#: The only characters outside ASCII whose lower case holds an ASCII letter: Kelvin's sign and the dotted capital I.
_LOWERED_TO_ASCII = ("\u212a", "\u0130")
#: Scripts whose words are not parted by spaces, by the first word of their characters' names.
_UNSPACED = frozenset(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"))


def in_canonical_order(words: Iterable[str]) -> list[str]:
    """A lexicon as a set, written in one way: lower case, the paper's words in its order, then the others sorted."""
    lexicon = {word.lower() for word in words}
    return [word for word in PAPER_WORDS if word in lexicon] + sorted(lexicon - set(PAPER_WORDS))


def count(text: str, words: Sequence[str], mode: Mode) -> dict[str, int]:
    """Occurrences of each word of a lexicon in one text; case does not matter.

    Words may be phrases. Raises ValueError for an empty or repeated word, which would count without meaning.
    """
    return dict(zip(words, _counter(words, mode)(text), strict=True))


def count_many(texts: Iterable[str], words: Sequence[str], mode: Mode) -> dict[str, list[int]]:
    """Counts as columns: word -> one number per text, in order. Errors as in `count`."""
    rows = list(map(_counter(words, mode), texts))
    return {word: [row[column] for row in rows] for column, word in enumerate(words)}


def density(total: int, tokens: int) -> float:
    """Occurrences per 1,000 tokens; 0.0 for an empty completion."""
    return 1000.0 * total / tokens if tokens else 0.0


def mark(text: str, words: Sequence[str]) -> list[tuple[str, bool]]:
    """The text in pieces (piece, is it an epistemic word), by the paper's rule; joined they are the text.

    Where words overlap, the one that begins first is marked, and of those the longest.
    """
    lexicon = sorted(_check(words), key=len, reverse=True)
    pieces: list[tuple[str, bool]] = []
    end = 0
    for found in re.finditer("|".join(map(re.escape, lexicon)), text, re.IGNORECASE):
        if found.start() > end:
            pieces.append((text[end : found.start()], False))
        pieces.append((found[0], True))
        end = found.end()
    return [*pieces, (text[end:], False)] if end < len(text) else pieces


def tokens_of(vocabulary: Mapping[str, int], words: Sequence[str]) -> dict[str, list[int]]:
    """For each word the tokens that are it by themselves, in any case and with or without a word-start mark."""
    found: dict[str, list[int]] = {word.lower(): [] for word in words}
    for token, index in vocabulary.items():
        word = token.strip("Ġ▁ ").lower()
        if word in found:
            found[word].append(index)
    return found


def has_unspaced_script(word: str) -> bool:
    """Whether a word is of a script without spaces: its neighbours are letters there, so mode `word` misses it."""
    return any(unicodedata.name(character, "").split(" ")[0] in _UNSPACED for character in word)


def _check(words: Sequence[str]) -> list[str]:
    lexicon = [word.lower() for word in words]
    if not all(word.strip() for word in lexicon):
        raise ValueError("a lexicon must not hold an empty word")
    if len(set(lexicon)) < len(lexicon):
        raise ValueError(f"a lexicon must not repeat a word: {', '.join(sorted(lexicon))}")
    return lexicon


def _counter(words: Sequence[str], mode: Mode) -> Callable[[str], list[int]]:
    """The function from a text to its counts."""
    lexicon = _check(words)
    if mode == "word":
        return lambda text: _count_whole_words(text.lower(), lexicon)
    if mode != "substring":
        raise ValueError(f"unknown mode `{mode}`; known: substring, word")
    if not all(word.isascii() for word in lexicon):
        return lambda text: list(map(text.lower().count, lexicon))
    encoded = [word.encode() for word in lexicon]

    def count_ascii(text: str) -> list[int]:
        # One character outside ASCII makes Python look up the lower case of every character. In UTF-8 only ASCII
        # letters need to be lowered to find ASCII words, at many times the speed.
        if text.isascii() or any(character in text for character in _LOWERED_TO_ASCII):
            return list(map(text.lower().count, lexicon))
        return list(map(text.encode("utf-8", "surrogatepass").lower().count, encoded))

    return count_ascii


def _count_whole_words(text: str, lexicon: Sequence[str]) -> list[int]:
    return [_count_whole(text, word) for word in lexicon]


def _count_whole(text: str, word: str) -> int:
    # Searching with str.find is several times faster than a regular expression with boundaries: few hits need a look.
    total, start = 0, text.find(word)
    while start >= 0:
        end = start + len(word)
        is_whole = not (start and _is_word_character(text[start - 1])) and not (
            end < len(text) and _is_word_character(text[end])
        )
        total += is_whole
        start = text.find(word, end if is_whole else start + 1)
    return total


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"
