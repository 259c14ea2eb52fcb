"""Epistemic words counted, in MB of text per second, against the obvious Python loop; counts must be equal.

The loop lower-cases the text for each word and counts it: `text.lower().count(word)` for substrings, a regular
expression with boundaries for whole words. The texts are like reasoning traces: 2 % of the words are of the lexicon;
`Unicode` ones hold a few characters outside ASCII, as most traces about mathematics do.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from functools import partial

from harness import Pair, Quantity, options, per_second, run

from selfdistill.epistemic import PAPER_WORDS, Mode, count_many

TEXTS, WORDS = 100, 8000
ORDINARY = tuple(
    re.findall(
        r"\S+",
        "the of and we have then so that number sum is equal to let x be hence therefore since if integer prime square "
        r"triangle because computing $x^2+y^2=4$ \frac{1}{2} both sides gives us another case which cannot hold here",
    )
)
UNICODE = (" √2 ≤ π", " “so”", " – thus", " n² + 1")

Counts = dict[str, list[int]]


def traces(has_unicode: bool) -> list[str]:
    generator = random.Random(0)

    def word() -> str:
        chosen = generator.choice(PAPER_WORDS if generator.random() < 0.02 else ORDINARY)
        return chosen.capitalize() if generator.random() < 0.1 else chosen

    texts = [" ".join(word() for _ in range(WORDS)) for _ in range(TEXTS)]
    return [text + generator.choice(UNICODE) for text in texts] if has_unicode else texts


def loop(texts: list[str], mode: Mode) -> Counts:
    counts: Counts = {word: [] for word in PAPER_WORDS}
    for text in texts:
        for word in PAPER_WORDS:
            if mode == "substring":
                counts[word].append(text.lower().count(word))
            else:
                counts[word].append(len(re.findall(rf"\b{word}\b", text.lower())))
    return counts


def pairs() -> Iterator[Pair]:
    for mode in ("substring", "word"):
        for has_unicode in (False, True):
            texts = traces(has_unicode)
            megabytes = sum(len(text.encode()) for text in texts) / 1e6
            if count_many(texts, PAPER_WORDS, mode) != loop(texts, mode):
                sys.exit(f"error: unequal counts, mode {mode}")

            yield Pair(
                f"{mode}, {'Unicode' if has_unicode else 'ASCII'}",
                "loop",
                (Quantity("speed", "MB/s"),),
                ours=partial(per_second, megabytes, partial(count_many, texts, PAPER_WORDS, mode)),
                peer=partial(per_second, megabytes, partial(loop, texts, mode)),
            )


if __name__ == "__main__":
    run(pairs(), options(__doc__).parse_args())
