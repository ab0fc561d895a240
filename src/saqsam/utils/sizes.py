"""Sizes in bytes, as numbers or as text such as `4GiB`."""

from __future__ import annotations

import re

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(value: int | str) -> int:
    """Return a size in bytes.

    Args:
        value: Number of bytes, or a number with a unit: `4GiB`, `512MiB`, `1.5T`. Units are powers of 1024.

    Raises:
        ValueError: The text has another form, or the size is below 1 byte.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"a size must be at least 1 byte, got {value}")
        return value
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])i?B?", value.strip(), re.IGNORECASE)
        size = 0 if match is None else int(float(match[1]) * _UNITS[match[2].upper()])
        if size >= 1:
            return size
    raise ValueError(f"a size must look like 4GiB or 512MiB, got {value!r}")
