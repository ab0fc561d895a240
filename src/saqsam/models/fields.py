"""Typed checks for the fields of configurations that come from untrusted JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from saqsam.utils.errors import CheckpointError, shorten

Check = Callable[[object], bool]
"""Function that returns whether a JSON value is legal for a field."""


class Field:
    """A JSON field with its check.

    Args:
        expected: Description of the legal values; completes the sentence "expected ...".
        accepts: Returns whether a value is legal.
        convert: Converts a legal value to its final type.
    """

    def __init__(
        self, expected: str, accepts: Check, convert: Callable[[Any], Any] = lambda value: value
    ) -> None:
        self.expected = expected
        self.accepts = accepts
        self.convert = convert


def integer(low: int, high: int) -> Field:
    """Return a field of integers from `low` to `high`; booleans and floats are refused."""
    return Field(f"an integer from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def multiple(of: int, high: int) -> Field:
    """Return a field of positive multiples of an integer, up to `high`; booleans and floats are refused."""
    return Field(
        f"a multiple of {of} up to {high}", lambda v: type(v) is int and 0 < v <= high and v % of == 0
    )


def number(low: float, high: float) -> Field:
    """Return a field of finite numbers from `low` to `high`, taken as floats; booleans are refused."""
    return Field(
        f"a number from {low:g} to {high:g}",
        lambda v: is_number(v) and low <= v <= high,  # type: ignore[operator]
        float,  # JSON may say 0 for 0.0, transformers' types do not
    )


def boolean() -> Field:
    """Return a field of true and false."""
    return Field("true or false", lambda v: isinstance(v, bool))


def choice(names: Collection[str]) -> Field:
    """Return a field of one of a few strings."""
    return Field(f"one of {', '.join(sorted(names))}", lambda v: isinstance(v, str) and v in names)


def used_indexes(indexes: Iterable[int], count: int) -> list[int]:
    """Return the distinct indexes below `count`, sorted: those of layers that exist."""
    return sorted({index for index in indexes if index < count})


def is_number(value: object) -> bool:
    """Return whether a value is a finite `int` or `float`, and not a boolean."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def take_fields(raw: Mapping[str, Any], fields: Mapping[str, Field], where: str) -> dict[str, Any]:
    """Return the known fields of a JSON object, each checked; unknown fields are ignored.

    Args:
        raw: The JSON object. A field that is null counts as absent, as in transformers.
        fields: The known fields by name.
        where: Start of error messages: the file, and the path of the object within it.

    Raises:
        CheckpointError: A field has an illegal value.
    """
    taken = {}
    for name, field in fields.items():
        value = raw.get(name)
        if value is None:
            continue
        if not field.accepts(value):
            raise CheckpointError(f"{where}{name}: expected {field.expected}, got {shorten(value)}")
        taken[name] = field.convert(value)
    return taken


def take_object(raw: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return the JSON object under `name`, empty where it is absent or null.

    Raises:
        CheckpointError: The value is something else.
    """
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}{name}: expected a JSON object, got {shorten(value)}")
    return value
