"""Uncertainty markers in text: counts per word, and their density (docs/method.md 10).

Two rules. `substring` is the paper's: lower-case the text, then count non-overlapping occurrences of each word,
wherever they stand ("unlikely" holds likely). `word` counts an occurrence only where no letter, digit or underscore
touches it, in any script. The paper reports raw counts per completion; density removes the effect of length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

Mode = Literal["substring", "word"]

#: The ten words of the paper (docs/method.md 10), in its order.
PAPER_WORDS = (
    "wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check",
)  # fmt: skip


def count(text: str, words: Sequence[str], mode: Mode) -> dict[str, int]:
    """Occurrences of each word of a lexicon in one text; case does not matter.

    Words may be phrases. Raises ValueError for an empty or repeated word, which would count without meaning.
    """
    lexicon = _check(words)
    return dict(zip(words, _count(text, lexicon, mode), strict=True))


def count_many(texts: Iterable[str], words: Sequence[str], mode: Mode) -> dict[str, list[int]]:
    """Counts as columns: word -> one number per text, in order. Errors as in `count`."""
    lexicon = _check(words)
    rows = [_count(text, lexicon, mode) for text in texts]
    return {word: [row[column] for row in rows] for column, word in enumerate(words)}


def density(total: int, tokens: int) -> float:
    """Occurrences per 1,000 tokens; 0.0 for an empty completion."""
    return 1000.0 * total / tokens if tokens else 0.0


def _check(words: Sequence[str]) -> list[str]:
    lexicon = [word.lower() for word in words]
    if not all(word.strip() for word in lexicon):
        raise ValueError("a lexicon must not hold an empty word")
    if len(set(lexicon)) < len(lexicon):
        raise ValueError(f"a lexicon must not repeat a word: {', '.join(sorted(lexicon))}")
    return lexicon


def _count(text: str, lexicon: Sequence[str], mode: Mode) -> list[int]:
    lowered = text.lower()
    if mode == "substring":
        return [lowered.count(word) for word in lexicon]
    if mode == "word":
        return [_count_whole(lowered, word) for word in lexicon]
    raise ValueError(f"unknown mode `{mode}`; known: substring, word")


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
