"""The control of the paper's appendix B.4: how far the lexicon's words move, and how far all others do."""

import pytest

from selfdistill.epistemic import PAPER_WORDS
from selfdistill.views.words import shift, word_frequencies

BEFORE = ["Wait, maybe 7. Wait!", "the sum is the answer"]
AFTER = ["the answer", "is it the sum, maybe"]


def test_words_are_counted_per_text():
    assert word_frequencies(BEFORE, PAPER_WORDS) == {
        "wait": 1.0, "maybe": 0.5, "the": 1.0, "sum": 0.5, "is": 0.5, "answer": 0.5,
    }  # fmt: skip


def test_the_lexicon_and_the_other_words_move_by_their_mean_absolute_changes():
    before, after = word_frequencies(BEFORE, PAPER_WORDS), word_frequencies(AFTER, PAPER_WORDS)
    found = shift(after, before, ["wait", "maybe"])
    # wait 1 -> 0, maybe 0.5 -> 0.5; the 1 -> 1, sum 0.5 -> 0.5, is 0.5 -> 0.5, answer 0.5 -> 0.5, it 0 -> 0.5.
    assert found.lexicon == pytest.approx(0.5)
    assert (found.others, found.other_words) == (pytest.approx(0.1), 5)
    # The paper's ten: eight of them occur on neither side and have moved by nothing.
    assert shift(after, before, PAPER_WORDS).lexicon == pytest.approx(0.1)


def test_case_phrases_and_scripts_without_spaces_are_not_lost():
    lexicon = ["Wait", "not sure", "well-nigh", "也许"]
    before = word_frequencies(["wait, not sure", "Not sure, well-nigh", "我想也许是五，也许不是"], lexicon)
    found = shift({}, before, lexicon)
    assert [before[word] for word in ("wait", "not sure", "well-nigh", "也许")] == pytest.approx(
        [1 / 3, 2 / 3, 1 / 3, 2 / 3]
    )
    assert found.lexicon == pytest.approx((1 + 2 + 1 + 2) / 3 / 4)


def test_nothing_moves_without_words():
    assert shift({}, {}, ["wait"]) == (0.0, 0.0, 0)
