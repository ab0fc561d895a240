"""Read the `segmentation` of an annotation, in all forms that tools write, as run lengths and corners.

COCO has lists of polygons `[x0, y0, x1, y1, ...]` and run lengths. Other tools write one flat polygon, corners as pairs
`[x, y]` or as points `{"x": ..., "y": ...}`, and numbers as text. Polygons often have stray parts, such as a click that
became a part of two corners; those parts are dropped and the object is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pycocotools.mask as rle_codec

from saqsam.data.json_fields import FLOAT_SIZE, TEXT_NUMBER, parse_numbers, parse_side, xyxy
from saqsam.data.rle import check_polygon, segmentation_to_rle

DAMAGED_MASK = "damaged mask"
FLAT_POLYGON = "polygon without area"

OTHER_FORM = "polygon not in COCO's form"
FLAT_PART = "polygon part without area dropped"
DAMAGED_PART = "damaged polygon part dropped"
UNUSUAL_RUNS = "run lengths with numbers as text or floats"

_LEAST_CORNERS = 3


@dataclass(frozen=True)
class Segmentation:
    """The mask of an annotation.

    Attributes:
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}`. Run lengths keep their own size.
        corners: Corners x, y of all polygons, one polygon after the other; None for run lengths.
    """

    rle: dict[str, Any]
    corners: tuple[tuple[float, float], ...] | None


def read_segmentation(value: Any, size: tuple[int, int], notes: Counter[str]) -> Segmentation | str:
    """Read a segmentation in any known form.

    Args:
        value: A JSON value.
        size: (height, width) of the image; polygons are drawn at this size.
        notes: Counter of unusual forms and dropped parts.

    Returns:
        The mask, possibly empty, or the reason why it cannot be used.
    """
    if isinstance(value, dict):
        return _read_runs(value, notes)
    polygons = _read_polygons(value, size, notes)
    if isinstance(polygons, str):
        return polygons
    return Segmentation(
        segmentation_to_rle(polygons, size),
        tuple(
            (float(x), float(y))
            for polygon in polygons
            for x, y in zip(polygon[::2], polygon[1::2], strict=True)
        ),
    )


def read_outer_box(
    value: Any, size: tuple[int, int], notes: Counter[str]
) -> tuple[float, float, float, float] | str:
    """Return the box (xyxy, pixels) around a segmentation without drawing it; arguments are as for `read_segmentation`.

    Returns:
        The box, possibly without area, or the reason why there is none.
    """
    if isinstance(value, dict):
        runs = _read_runs(value, notes)
        return runs if isinstance(runs, str) else xyxy(rle_codec.toBbox(runs.rle).tolist())
    polygons = _read_polygons(value, size, notes)
    if isinstance(polygons, str):
        return polygons
    xs = [float(x) for polygon in polygons for x in polygon[::2]]
    ys = [float(y) for polygon in polygons for y in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _read_polygons(value: Any, size: tuple[int, int], notes: Counter[str]) -> list[Sequence[float]] | str:
    """Return the parts of a polygon that can be drawn, or the reason why there is none."""
    if not isinstance(value, list):
        return DAMAGED_MASK
    parts, is_other_form = _split(value)
    irregularities = Counter({OTHER_FORM: 1} if is_other_form else {})
    read = (_read_part(part, size, irregularities) for part in parts)
    polygons = [polygon for polygon in read if polygon is not None]
    if not polygons:
        return DAMAGED_MASK if irregularities[DAMAGED_PART] else FLAT_POLYGON
    notes.update(irregularities)
    return polygons


def least_size(value: Any) -> tuple[float, float] | None:
    """Return the (height, width) that an image must have to hold a segmentation; None if it does not state one."""
    ignored: Counter[str] = Counter()
    if isinstance(value, dict):
        sides = _read_size(value.get("size"), ignored)
        return None if sides is None else (sides[0], sides[1])
    if not isinstance(value, list):
        return None
    parts = (parse_numbers(part, ignored) for part in _split(value)[0])
    usable = [part for part in parts if part is not None and len(part) >= 2]
    if not usable:
        return None
    return max(max(part[1::2]) for part in usable), max(max(part[::2]) for part in usable)


def _split(value: list[Any]) -> tuple[list[Any], bool]:
    """Return each part of a polygon as a flat list of coordinates, and whether any had another form.

    A part in no known form stays as it is.
    """
    if value and all(map(_is_scalar, value)):
        return [value], True
    parts = [value] if value and all(map(_is_point, value)) else value
    flat = [_flatten(part) for part in parts]
    return flat, any(after is not before for before, after in zip(parts, flat, strict=True))


def _flatten(part: Any) -> Any:
    if not (isinstance(part, list) and part and all(map(_is_point, part))):
        return part
    corners = (item if isinstance(item, list) else (item["x"], item["y"]) for item in part)
    return [coordinate for corner in corners for coordinate in corner]


def _is_scalar(item: Any) -> bool:
    return isinstance(item, int | float | str)


def _is_point(item: Any) -> bool:
    if isinstance(item, dict):
        return "x" in item and "y" in item
    return isinstance(item, list) and len(item) == 2 and all(map(_is_scalar, item))


def _read_part(part: Any, size: tuple[int, int], notes: Counter[str]) -> Sequence[float] | None:
    numbers = parse_numbers(part, notes)
    if numbers is None or len(numbers) % 2:
        notes[DAMAGED_PART] += 1
        return None
    if len(numbers) < 2 * _LEAST_CORNERS or _is_flat(numbers):
        notes[FLAT_PART] += 1
        return None
    try:
        return check_polygon(numbers, *size)
    except ValueError:
        notes[DAMAGED_PART] += 1
        return None


def _is_flat(polygon: Sequence[float]) -> bool:
    """Return whether all corners lie on one straight line."""
    x0, y0 = polygon[:2]
    offsets = [(x - x0, y - y0) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    along = next(((dx, dy) for dx, dy in offsets if dx or dy), None)
    return along is None or all(dx * along[1] == dy * along[0] for dx, dy in offsets)


def _read_runs(value: dict[str, Any], notes: Counter[str]) -> Segmentation | str:
    forms: Counter[str] = Counter()
    size, counts = _read_size(value.get("size"), forms), value.get("counts")
    if size is None:
        return DAMAGED_MASK
    if isinstance(counts, list):
        numbers = parse_numbers(counts, forms)
        if numbers is None or any(number != int(number) for number in numbers):
            return DAMAGED_MASK
        if any(isinstance(number, float) for number in numbers):
            forms[FLOAT_SIZE] += 1
        counts = [int(number) for number in numbers]
    try:
        rle = segmentation_to_rle({"size": size, "counts": counts}, (size[0], size[1]))
    except ValueError:
        return DAMAGED_MASK
    if forms[TEXT_NUMBER] or forms[FLOAT_SIZE]:
        notes[UNUSUAL_RUNS] += 1
    return Segmentation(rle, None)


def _read_size(value: Any, notes: Counter[str]) -> list[int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    height, width = (parse_side(side, notes) for side in value)
    return None if height is None or width is None else [height, width]
