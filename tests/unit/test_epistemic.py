"""Counts of epistemic words, against the paper's vectors and a regular expression."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from selfdistill.epistemic import PAPER_WORDS, count, count_many, density, has_unspaced_script
from selfdistill.schema.config import Config

FIRST = "Wait, waiting and await; unlikely. Let me double-check: checking. Hmmm, almighty."
SECOND = "ACTUALLY maybe it seems likely; perhaps, alternatively, it might."


def nonzero(counts):
    return {word: number for word, number in counts.items() if number}


def test_substring_counts_equal_the_papers_vectors():
    assert nonzero(count(FIRST, PAPER_WORDS, "substring")) == {
        "wait": 3, "hmm": 1, "might": 1, "likely": 1, "check": 2,
    }  # fmt: skip
    assert sum(count(SECOND, PAPER_WORDS, "substring").values()) == 7


def test_word_counts_stop_at_word_boundaries():
    assert nonzero(count(FIRST, PAPER_WORDS, "word")) == {"wait": 1, "check": 1}
    assert sum(count(SECOND, PAPER_WORDS, "word").values()) == 7


def test_there_are_ten_words_and_each_is_counted_once():
    assert len(PAPER_WORDS) == 10
    assert set(count(" ".join(PAPER_WORDS), PAPER_WORDS, "word").values()) == {1}


def test_word_boundaries_are_unicode():
    assert count("éwait waité wait— «wait» wait_ wait2 wait", ["wait"], "word") == {"wait": 3}
    assert count("Может быть, может", ["может"], "word") == {"может": 2}


def test_phrases_count_and_do_not_overlap():
    assert count("not sure, not sure; cannot sure", ["not sure"], "word") == {"not sure": 2}
    assert count("aaaa", ["aa"], "substring") == {"aa": 2}


@given(st.text(alphabet="ab_1 é-", max_size=40))
def test_word_mode_equals_a_regular_expression(text):
    words = ["a", "ab", "b a", "a-b"]
    expected = {word: len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text.lower())) for word in words}
    assert count(text, words, "word") == expected


def test_columns_hold_the_counts_of_each_text():
    assert count_many([FIRST, "", SECOND], ("wait", "maybe"), "substring") == {"wait": [3, 0, 0], "maybe": [0, 0, 1]}


def test_a_lexicon_with_empty_or_repeated_words_is_refused():
    with pytest.raises(ValueError, match="empty"):
        count("x", ["wait", " "], "word")
    with pytest.raises(ValueError, match="repeat"):
        count_many(["x"], ["wait", "Wait"], "substring")
    with pytest.raises(ValueError, match="unknown mode"):
        count("x", ["wait"], "regex")


def test_density_is_per_thousand_tokens_and_never_nan():
    assert density(3, 200) == 15.0
    assert density(0, 0) == 0.0


@given(
    st.lists(
        st.sampled_from(["wait", "WAIT", "k", "K", "\u212a", "\u0130", "i", "é", "Ω", "ς", "\ud800", "😀", "a", " "])
    ).map("".join)
)
def test_texts_with_any_characters_count_as_pythons_lower_case_does(text):
    words = ["wait", "k", "i", "ai", "a k"]
    assert count(text, words, "substring") == {word: text.lower().count(word) for word in words}
    assert count(text, [*words, "é"], "substring") == {word: text.lower().count(word) for word in [*words, "é"]}


def test_two_characters_alone_become_ascii_letters_in_lower_case():
    ascii_letters = set(map(chr, range(128)))
    becoming = [chr(code) for code in range(128, sys.maxunicode + 1) if ascii_letters & set(chr(code).lower())]
    assert becoming == ["\u0130", "\u212a"]


def test_other_languages_have_their_own_lexicon():
    text = "Moment, vielleicht stimmt das nicht. Vielleicht doch? Überprüfen wir es: ÜBERPRÜFEN."
    assert count(text, ["vielleicht", "überprüfen"], "word") == {"vielleicht": 2, "überprüfen": 2}
    assert count("等等，也许是五。也许不是", ["也许", "等等"], "substring") == {"也许": 2, "等等": 1}
    assert count("等等，也许是五。", ["也许"], "word") == {"也许": 0}
    assert [has_unspaced_script(word) for word in ("也许", "ひょっとして", "บางที", "может", "vielleicht", "")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lexicon", "message"),
    [(["wait", " "], "empty word"), (["wait", "Wait"], "twice .ignoring case.: wait"), ([], "at least 1")],
)
def test_a_lexicon_that_counts_nothing_or_twice_is_refused_in_the_config(lexicon, message):
    with pytest.raises(ValidationError, match=message) as caught:
        Config.model_validate({"lexicon": lexicon})
    assert any(error["loc"] == ("lexicon",) for error in caught.value.errors())
