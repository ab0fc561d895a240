"""Text for counts, such as the numbers of skipped objects by reason."""

from __future__ import annotations

from collections.abc import Mapping


def list_counts(counts: Mapping[str, int]) -> str:
    """Return counts as one phrase, the largest first: `empty mask (12), damaged mask (3)`."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} ({count})" for name, count in ranked if count)


def skipped_phrase(counts: Mapping[str, int]) -> str:
    """Return the end of an error message that counts skipped items by reason; empty if there are none."""
    listed = list_counts(counts)
    return f"; skipped: {listed}" if listed else ""


def count_phrase(count: int, plural: str) -> str:
    """Return a count with its noun: `1 image`, `2 images`."""
    return f"{count} {plural.removesuffix('s') if count == 1 else plural}"
