"""Parse memory sizes: numbers of bytes or text such as `4GiB`."""

from __future__ import annotations

import re

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(size: int | str) -> int:
    """Return a size in bytes.

    Args:
        size: Bytes, or text such as `4GiB`, `512MiB` or `1.5g`; units are powers of 1024.

    Raises:
        ValueError: The text has another form, or the size is less than one byte.
    """
    count = size if type(size) is int else 0
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])i?B?", size.strip(), re.IGNORECASE)
        count = 0 if match is None else int(float(match[1]) * _UNITS[match[2].upper()])
    if count < 1:
        raise ValueError(f"a size must look like 4GiB or 512MiB, or be a number of bytes, got {size!r}")
    return count
