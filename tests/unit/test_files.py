"""Canonical JSON and keys."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.files import canonical_json, key_of, sha256_file

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def reversed_order(value):
    if isinstance(value, dict):
        return {k: reversed_order(v) for k, v in reversed(value.items())}
    return [reversed_order(v) for v in value] if isinstance(value, list) else value


@given(JSON)
def test_order_of_keys_does_not_matter(value):
    assert canonical_json(value) == canonical_json(reversed_order(value))


def test_key_is_the_first_twelve_digits_of_the_sha256():
    text = '{"a":[1,2.5,"é"],"b":null}'
    assert canonical_json({"b": None, "a": [1, 2.5, "é"]}) == text
    assert key_of({"b": None, "a": [1, 2.5, "é"]}) == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: "a"}, {"a": {2}}, {"a": object()}, {"a": (1,)}])
def test_what_has_no_stable_form_raises(value):
    with pytest.raises((TypeError, ValueError)):
        canonical_json(value)


def test_integer_and_float_are_different_specs():
    assert key_of({"a": 1}) != key_of({"a": 1.0})


def test_file_digest(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
