"""Canonical JSON and keys; writes that are whole or absent, and on disk."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from power_cut import Disk
from selfdistill.files import canonical_json, key_of, move_into_place, replacing, sha256_file, write_atomically

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


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "new" / "x"
    write_atomically(path, "old")
    with pytest.raises(ValueError, match="half"), replacing(path) as partial:
        partial.write_text("ne")
        raise ValueError("half")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["x"]


def test_what_a_killed_writer_left_is_replaced(tmp_path):
    (tmp_path / ".x.part").write_text("left by a killed writer")
    with replacing(tmp_path / "x") as partial:
        assert not partial.exists()
        partial.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_line_ends_are_written_as_they_are(tmp_path):
    write_atomically(tmp_path / "x", "a\r\nb\n")
    assert (tmp_path / "x").read_bytes() == b"a\r\nb\n"


def test_content_and_name_of_a_written_file_survive_a_power_cut(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    write_atomically(tmp_path / "folder" / "x", "text")
    assert disk.lost(tmp_path / "folder") == []
    write_atomically(tmp_path / "folder" / "y", "text", durable=False)
    assert disk.lost(tmp_path / "folder") == [tmp_path / "folder", tmp_path / "folder" / "y"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_is_moved_into_place_with_all_that_it_holds(tmp_path, monkeypatch, is_there):
    partial, target = tmp_path / ".step.partial", tmp_path / "step"
    (partial / "deep").mkdir(parents=True)
    (partial / "deep" / "x").write_text("new")
    if is_there:
        target.mkdir()
        (target / "old").write_text("old")
    disk = Disk(monkeypatch)
    move_into_place(partial, target)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "step", "step/deep", "step/deep/x"
    ]  # fmt: skip
    assert disk.lost(tmp_path) == []
