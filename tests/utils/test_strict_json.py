"""Strict JSON: what is accepted comes back unchanged; everything else is one CheckpointError."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqsam.utils.errors import MAX_MESSAGE_LENGTH, MAX_VALUE_LENGTH, CheckpointError, shorten
from saqsam.utils.strict_json import MAX_BYTES, MAX_DEPTH, parse_json_object, read_json_object

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
FINITE = st.floats(-(2.0**53), 2.0**53, allow_nan=False)
VALUES = st.recursive(SCALARS | FINITE, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=20)


@given(st.dictionaries(st.text(), VALUES))
def test_an_ordinary_object_comes_back_unchanged(values: dict[str, object]) -> None:
    assert parse_json_object(json.dumps(values), "f") == values


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_parse_or_raise_a_checkpoint_error(content: bytes) -> None:
    message = ""
    try:
        parse_json_object(content, "f")
    except CheckpointError as error:
        message = str(error)
    assert len(message) < MAX_MESSAGE_LENGTH + 40
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested at most 32 levels"),
        ('{"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "nested at most 32 levels"),
        ('{"a": NaN}', "finite numbers"),
        ('{"a": [1e999]}', "finite numbers"),
        ('{"a": 9007199254740993}', "finite numbers"),
        ('{"a": ' + "9" * 5000 + "}", "expected JSON"),
        ('{"a": 1, "a": 2}', "key 'a' appears twice"),
        ("[1]", "expected a JSON object, got list"),
        ("", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
    ],
)
def test_what_is_refused(content: bytes | str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_json_object(content, "f")


def test_the_deepest_allowed_nesting_is_read() -> None:
    content = '{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"
    assert "a" in parse_json_object(content, "f")


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(path) == {"a": 1}


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: reading it would take all memory
    with pytest.raises(CheckpointError, match=rf"at most {MAX_BYTES:,} bytes"):
        read_json_object(path)


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found something else"):
        read_json_object(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "none.json")


@given(VALUES)
def test_shortened_values_are_short(value: object) -> None:
    assert len(shorten(value)) <= MAX_VALUE_LENGTH


def test_shortening_does_not_render_what_it_cuts() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert len(shorten(nested)) <= MAX_VALUE_LENGTH
    assert len(shorten("x" * 10**6)) <= MAX_VALUE_LENGTH
    while nested:  # freeing it at once would recurse
        nested = nested.pop()  # type: ignore[assignment]
