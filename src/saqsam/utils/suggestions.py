"""Suggest the nearest valid name in an error message."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: object, choices: Sequence[str]) -> str:
    """A hint for an error message: the nearest right name, or all of them."""
    near = difflib.get_close_matches(str(name), choices, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(choices)}"
