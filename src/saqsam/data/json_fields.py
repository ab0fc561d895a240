"""Checks and conversions of single fields in COCO's JSON files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

_LARGEST = 2.0**53
"""Numbers beyond the integers that float64 holds exactly are damage, not ids or coordinates."""


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: The file is missing, is no UTF-8 text or no JSON.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a JSON file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8 and bad JSON alike
        raise ValueError(f"{path}: expected JSON ({error})") from error


def is_int(value: object) -> TypeGuard[int]:
    """Whether a JSON value is an integer of at most 53 bits; true and false are not."""
    return isinstance(value, int) and is_finite(value)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number below 2^53 (Python's parser lets NaN and Infinity through)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def is_xywh(value: object) -> TypeGuard[list[float]]:
    """Whether a JSON value is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(is_finite(number) for number in value)


def xyxy(xywh: Sequence[float]) -> tuple[float, float, float, float]:
    """A COCO box (x, y, width, height) as (x0, y0, x1, y1) with exclusive ends, in the same pixels."""
    x, y, width, height = (float(number) for number in xywh)
    return (x, y, x + width, y + height)


def touches(box: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    """Whether an xyxy box and an image of `size` (height, width) share any area."""
    return box[0] < size[1] and box[1] < size[0] and box[2] > 0 and box[3] > 0
