"""Parse sizes: numbers of bytes or text such as `4GiB` or `6MB`."""

from __future__ import annotations

import re

_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(size: int | str) -> int:
    """Return a size in bytes.

    Args:
        size: Bytes, or text such as `4GiB`, `6MB` or `1.5g`. `KB`, `MB`, `GB` and `TB` are powers of 1000; `KiB` and
            the like, or a letter alone, powers of 1024.

    Raises:
        ValueError: The text has another form, or the size is less than one byte.
    """
    count = size if type(size) is int else None
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?B?)", size.strip(), re.IGNORECASE)
        if match is not None:
            base = 1000 if match[3].upper() == "B" else 1024
            count = int(float(match[1]) * base ** _POWERS[match[2].upper()])
    if count is None:
        raise ValueError(f"a size must look like 4GiB or 512MiB, or be a number of bytes, got {size!r}")
    if count < 1:
        raise ValueError(f"a size must be at least one byte, got {size!r}")
    return count
