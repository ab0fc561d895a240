"""Suggest valid names in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def suggestion(name: object, choices: Sequence[str]) -> str:
    """Return the end of an error message about an unknown name: the closest valid name, or all valid names."""
    close = difflib.get_close_matches(str(name), choices, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(choices)}"
