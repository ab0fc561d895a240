"""Durations as commands print them."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Return a duration such as `4.2 s`, `95 s`, `12 min 5 s` or `1 h 40 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 120:
        return f"{rounded} s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def estimate_text(seconds: float) -> str:
    """Return an estimated duration to one or two digits, such as `about 40 s`, `about 3 min` or `about 2 h 10 min`."""
    if seconds < 100:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    if seconds < 3570:
        return f"about {round(seconds / 60)} min"
    tens = round(seconds / 600)
    hours, minutes = divmod(10 * tens, 60)
    return f"about {hours} h {minutes} min" if minutes else f"about {hours} h"
