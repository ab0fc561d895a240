"""Strict reading of dataclasses from plain values that come from untrusted JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from saqsam.utils.errors import shorten


class PlainFields:
    """The fields of a dataclass, read one by one.

    Args:
        values: The untrusted values.
        of: The dataclass.

    Raises:
        ValueError: The values are not a mapping with exactly the fields of the dataclass.
    """

    def __init__(self, values: Any, of: type) -> None:
        self._values, self._type_name = values, of.__name__
        names = {field.name for field in dataclasses.fields(of)}
        if not isinstance(values, Mapping) or values.keys() != names:
            raise ValueError(f"{self._type_name}: expected {', '.join(sorted(names))}, got {shorten(values)}")

    def get(self, name: str, is_valid: Callable[[Any], bool]) -> Any:
        """Return the value of a field; raise ValueError if it is not valid."""
        value = self._values[name]
        if not is_valid(value):
            raise ValueError(f"{self._type_name}: {name} cannot be {shorten(value)}")
        return value


def is_text(value: Any) -> bool:
    """Return whether a value is text."""
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_fraction(value: Any) -> bool:
    """Return whether a value is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_count(value: Any) -> bool:
    """Return whether a value is an integer of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_list(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list of valid entries."""
    return isinstance(value, list) and all(is_valid(entry) for entry in value)
