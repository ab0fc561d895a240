"""Checks and conversions of single fields in COCO's JSON files.

Tools write the same value in different ways: ids as text or floats, flags as booleans, numbers as text. The `parse_*`
functions accept every form with a single meaning, count unusual ones in `notes`, and return None for all others.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from saqsam.utils.errors import shorten_message

TEXT_ID = "id written as text"
FLOAT_ID = "id written as a float"
TEXT_NUMBER = "number written as text"
FLOAT_SIZE = "size written as a float"
UNUSUAL_FLAG = "crowd flag not written as 0 or 1"
BYTE_ORDER_MARK = "file with a byte-order mark"

_LARGEST = 2.0**53
"""Numbers beyond the integers that float64 holds exactly are damage, not ids or coordinates."""
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_INTEGER_TEXT = re.compile(r"[+-]?[0-9]{1,16}(\.0*)?", re.ASCII)
_NUMBER_TEXT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
_LONGEST_NUMBER = 40
"""Characters of a number written as text; the longest that Python itself writes has 24."""
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def read_json(path: Path, notes: Counter[str]) -> Any:
    """Parse a JSON file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Args:
        path: The file.
        notes: Counter of byte-order marks.

    Raises:
        ValueError: The file is missing, cannot be decoded, or is not a single JSON value.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a JSON file, found {'a folder' if path.is_dir() else 'nothing'}")
    content = path.read_bytes()
    try:
        parsed = json.loads(content)
    except RecursionError:
        raise ValueError(f"{path}: expected JSON, found too many levels of nesting") from None
    except json.JSONDecodeError as error:
        problem = shorten_message(error)
        if error.msg == "Extra data" and error.pos:
            problem = f"found more after the first value, as in JSON lines: {problem}"
        raise ValueError(f"{path}: expected JSON ({problem})") from error
    except ValueError as error:  # bad UTF-8, or an integer of thousands of digits
        raise ValueError(f"{path}: expected JSON ({shorten_message(error)})") from error
    if content.startswith(_BYTE_ORDER_MARKS):
        notes[BYTE_ORDER_MARK] += 1
    return parsed


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number below 2^53 (Python's parser lets NaN and Infinity through)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def parse_id(value: object, notes: Counter[str]) -> int | None:
    """Return an id written as an integer, an integral float (7.0) or numeric text ("7"), below 2^53."""
    if isinstance(value, str):
        text = value.strip()
        if not _INTEGER_TEXT.fullmatch(text):
            return None
        number = int(text.partition(".")[0])
        note: str | None = TEXT_ID
    elif is_finite(value) and value == int(value):
        number = int(value)
        note = FLOAT_ID if isinstance(value, float) else None
    else:
        return None
    if abs(number) >= _LARGEST:
        return None
    if note is not None:
        notes[note] += 1
    return number


def parse_side(value: object, notes: Counter[str]) -> int | None:
    """Return a height or width, a positive integer in any form that `parse_id` takes."""
    forms: Counter[str] = Counter()
    side = parse_id(value, forms)
    if side is None or side <= 0:
        return None
    if forms:
        notes[TEXT_NUMBER if forms[TEXT_ID] else FLOAT_SIZE] += 1
    return side


def parse_numbers(values: object, notes: Counter[str]) -> list[float] | None:
    """Return a list of finite numbers, some of them possibly written as text; one note for the whole list."""
    if not isinstance(values, list):
        return None
    numbers = [_parse_number(value) for value in values]
    if any(number is None for number in numbers):
        return None
    if any(isinstance(value, str) for value in values):
        notes[TEXT_NUMBER] += 1
    return [number for number in numbers if number is not None]


def parse_xywh(value: object, notes: Counter[str]) -> list[float] | None:
    """Return a box (x, y, width, height), as a list or as text such as "10, 5, 20, 20"."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[\s,]+", value.strip(" []()")) if part]
    numbers = parse_numbers(value, notes)
    return numbers if numbers is not None and len(numbers) == 4 else None


def _parse_number(value: object) -> float | None:
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST_NUMBER or not _NUMBER_TEXT.fullmatch(text):
            return None
        value = float(text)
    return value if is_finite(value) else None


def parse_flag(value: object, notes: Counter[str]) -> bool | None:
    """Return a flag written as 0 or 1, a boolean, or text of either; an absent or null one is false."""
    if value is None:
        return False
    if isinstance(value, str):
        flag = _FLAGS.get(value.strip().lower())
    else:
        flag = bool(value) if isinstance(value, int | float) and value in (0, 1) else None
    if flag is not None and type(value) is not int:
        notes[UNUSUAL_FLAG] += 1
    return flag


def xyxy(xywh: Sequence[float]) -> tuple[float, float, float, float]:
    """Convert a COCO box (x, y, width, height) to (x0, y0, x1, y1) with exclusive ends, in the same pixels."""
    x, y, width, height = (float(number) for number in xywh)
    return (x, y, x + width, y + height)


def touches(box: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    """Return whether an xyxy box and an image of `size` (height, width) share any area."""
    return box[0] < size[1] and box[1] < size[0] and box[2] > 0 and box[3] > 0
