"""Intersection over union of convex polygons, such as oriented boxes: exact but for the rounding of float64.

OpenCV's intersections work in float32 and with tolerances of their own, which shows at DOTA's coordinates in the
thousands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saqsam.data.polygons import Polygon, polygon_area

_Corners = list[tuple[float, float]]


def intersection_areas(one: Sequence[Polygon], other: Sequence[Polygon]) -> NDArray[np.float64]:
    """Compute the area that each polygon of one list shares with each of another.

    Args:
        one: N convex polygons, as `convex_hull` and `smallest_rectangle` give them.
        other: M convex polygons.

    Returns:
        [N, M] float64, at least 0.
    """
    shared = np.zeros((len(one), len(other)))
    if shared.size == 0:
        return shared
    low, high = _bounds(one)
    other_low, other_high = _bounds(other)
    meet = (low[:, None] < other_high).all(axis=2) & (other_low < high[:, None]).all(axis=2)
    for row, column in np.argwhere(meet).tolist():
        shared[row, column] = _shared_area(one[row], other[column])
    return shared


def polygon_ious(one: Sequence[Polygon], other: Sequence[Polygon]) -> NDArray[np.float64]:
    """Compute the IoU of each polygon of one list with each of another.

    Args:
        one: N convex polygons.
        other: M convex polygons.

    Returns:
        [N, M] float64 in [0, 1].
    """
    shared = intersection_areas(one, other)
    union = _areas(one)[:, None] + _areas(other) - shared
    return np.minimum(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), 1.0)


def shares_inside(one: Sequence[Polygon], other: Sequence[Polygon]) -> NDArray[np.float64]:
    """Compute the share of each polygon of one list inside each of another, [N, M] float64 in [0, 1]."""
    shared, areas = intersection_areas(one, other), _areas(one)[:, None]
    return np.minimum(np.divide(shared, areas, out=np.zeros_like(shared), where=areas > 0), 1.0)


def _areas(polygons: Sequence[Polygon]) -> NDArray[np.float64]:
    return np.array([polygon_area(polygon) for polygon in polygons], dtype=np.float64)


def _bounds(polygons: Sequence[Polygon]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the minimum and maximum x, y of N polygons, [N, 2] each."""
    return np.stack([p.min(axis=0) for p in polygons]), np.stack([p.max(axis=0) for p in polygons])


def _shared_area(one: Polygon, other: Polygon) -> float:
    """Cut one polygon along each side of the other (Sutherland and Hodgman, 1974), and return the area left."""
    left: _Corners = list(map(tuple, one.tolist()))
    sides: _Corners = list(map(tuple, other.tolist()))
    for start, end in zip(sides, sides[1:] + sides[:1], strict=True):
        left = _cut(left, start, end)
        if len(left) < 3:
            return 0.0
    return max(0.0, polygon_area(left))


def _cut(corners: _Corners, start: tuple[float, float], end: tuple[float, float]) -> _Corners:
    """Return the part of a convex polygon to the left of a line or on it."""
    (x0, y0), (x1, y1) = start, end
    sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in corners]
    kept: _Corners = []
    for place, (x, y) in enumerate(corners):
        side, before = sides[place], sides[place - 1]
        if (side > 0 > before) or (side < 0 < before):
            last_x, last_y = corners[place - 1]
            share = before / (before - side)
            kept.append((last_x + share * (x - last_x), last_y + share * (y - last_y)))
        if side >= 0:
            kept.append((x, y))
    return kept
