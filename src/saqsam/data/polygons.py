"""Convex hulls and smallest enclosing rectangles, in float64.

Coordinates are x, y in pixels with the origin at the image's top left *corner*: pixel (column i, row j) is the square
from (i, j) to (i + 1, j + 1), as in the boxes of `Instance`.
"""

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Polygon = NDArray[np.float64]
"""[K, 2] corners x, y, in an order in which `polygon_area` is positive."""

_EQUAL = 1e-9
"""Areas that differ by less than this share are equal."""


def convex_hull(points: ArrayLike) -> Polygon:
    """Return the convex hull of points (Andrew's monotone chain).

    Args:
        points: [N, 2] finite x, y, in any order, N >= 1.

    Returns:
        [K, 2] float64, a `Polygon` without collinear corners. Collinear points give the two ends of their line, and
        a single point gives itself.
    """
    ordered = sorted(set(map(tuple, np.asarray(points, dtype=np.float64).tolist())))
    if len(ordered) < 3:
        return np.array(ordered)
    return np.array(_half_hull(ordered)[:-1] + _half_hull(reversed(ordered))[:-1])


def _half_hull(ordered: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return the hull to the right of the line from the first to the last point, ends included."""
    chain: list[tuple[float, ...]] = []
    for x, y in ordered:
        while len(chain) > 1:
            (x0, y0), (x1, y1) = chain[-2:]
            if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                break
            chain.pop()
        chain.append((x, y))
    return chain


def polygon_area(polygon: ArrayLike) -> float:
    """Return the signed area of a polygon [K, 2], K >= 1 (shoelace formula); 0 for fewer than three corners."""
    corners: list[list[float]] = np.asarray(polygon, dtype=np.float64).tolist()
    (x0, y0), *others = corners
    # Coordinates relative to the first corner, because differences of products lose no digits near the origin.
    to = [(x - x0, y - y0) for x, y in others]
    return sum(ax * by - bx * ay for (ax, ay), (bx, by) in itertools.pairwise(to)) / 2


def smallest_rectangle(points: ArrayLike) -> Polygon | None:
    """Return the rectangle of least area, at any angle, that encloses all points.

    One of its sides lies along a side of the convex hull (Freeman and Shapira, 1975), so all sides are tried. Among
    equal areas an upright rectangle is preferred.

    Args:
        points: [N, 2] finite x, y, N >= 1.

    Returns:
        [4, 2], a `Polygon`; None where all points lie on one line.
    """
    hull = convex_hull(points)
    if len(hull) < 3:
        return None
    sides = np.roll(hull, -1, axis=0) - hull
    along = sides / np.hypot(*sides.T)[:, None]  # [K, 2] unit vectors
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    u, v = hull @ along.T, hull @ across.T  # [corners, sides]
    low, high = np.stack([u.min(axis=0), v.min(axis=0)]), np.stack([u.max(axis=0), v.max(axis=0)])
    is_turned = (along != 0).all(axis=1)
    best = int(np.argmin(np.prod(high - low, axis=0) * np.where(is_turned, 1 + _EQUAL, 1)))
    (u0, v0), (u1, v1) = low[:, best], high[:, best]
    corners = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]])
    rectangle: Polygon = corners @ np.stack([along[best], across[best]])
    return rectangle


def mask_rectangle(mask: NDArray[np.bool_]) -> Polygon | None:
    """Return the smallest rectangle around a mask, whatever the number of its parts.

    The rectangle encloses the contour half way between inner and outer pixels, as in marching squares: the midpoints of
    the outer pixel sides. An upright mask of w x h pixels has a rectangle of w x h, while pixel centers would give
    (w - 1) x (h - 1). Pixel corners would give w x h too, but they stand out more on a rotated mask, whose sides are
    stairs: a rotated 10 x 20 px rectangle drawn as a mask is recovered with an IoU of 0.85 from corners, and of 0.89
    from midpoints. A single pixel gives a square standing on its corner.

    Args:
        mask: HW bool.

    Returns:
        [4, 2], a `Polygon` in pixels; None for an empty mask.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    left, right = _ends(mask[rows])
    top, bottom = _ends(mask[:, columns].T)
    # Only the outermost sides of each row and column can lie on the hull.
    ends = [(left, rows + 0.5), (right, rows + 0.5), (columns + 0.5, top), (columns + 0.5, bottom)]
    return smallest_rectangle(np.concatenate([np.stack(end, axis=1) for end in ends]))


def _ends(lines: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first position and the exclusive end of the pixels in each line [N, L], none of which is empty."""
    return lines.argmax(axis=1), lines.shape[1] - lines[:, ::-1].argmax(axis=1)
