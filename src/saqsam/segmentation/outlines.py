"""Outlines of masks as polygons along the sides of pixels, which enclose exactly the pixels of the mask.

Coordinates are x, y in pixels with the origin at the image's top left *corner*: pixel (column i, row j) is the square
from (i, j) to (i + 1, j + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from saqsam.data.tight_box import tight_box

Ring = NDArray[np.float64]
"""[K, 2] corners x, y, without the first one repeated."""


@dataclass(frozen=True)
class Outline:
    """The outline of a connected part of a mask; pixels that only touch at a corner are not connected.

    Attributes:
        outer: Its outer ring, clockwise as an image is shown.
        holes: Rings around its holes, counterclockwise.
    """

    outer: Ring
    holes: tuple[Ring, ...] = ()


def outlines(mask: NDArray[np.bool_], tolerance: float = 0.0) -> list[Outline]:
    """Return the outlines of the parts of a mask, the largest first.

    Args:
        mask: HW bool.
        tolerance: Largest distance in pixels by which corners may be left out (Douglas and Peucker, 1973); 0 keeps the
            exact outline. A ring that would have no area keeps its corners.
    """
    box = tight_box(mask)
    if box is None:
        return []
    x, y, right, bottom = box
    part = mask[y:bottom, x:right]
    _, labels = cv2.connectedComponents(part.astype(np.uint8), connectivity=4)
    outer: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    areas: dict[int, float] = {}
    for ring in _rings(part):
        (x0, y0), (x1, _) = ring[0], ring[1]
        # The first side is horizontal, with the object below it if it runs to the right, and above it if to the left.
        label = int(labels[y0, x0] if x1 > x0 else labels[y0 - 1, x0 - 1])
        area = _area(ring)
        placed = _simplified(ring, tolerance) + np.array([x, y])
        if area > 0:
            outer[label], areas[label] = placed, area
        else:
            holes.setdefault(label, []).append(placed)
    ordered = sorted(outer, key=lambda label: -areas[label])
    return [Outline(outer[label], tuple(holes.get(label, ()))) for label in ordered]


def _rings(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the closed lines between mask and background, [K, 2] corners x, y each; the first side is horizontal.

    The mask lies to the right of the direction of travel. Where two lines meet at a corner, each turns right.
    """
    starts, ends = _sides(mask)
    leaving: dict[tuple[int, int], list[int]] = {}
    for side, start in enumerate(starts):
        leaving.setdefault(start, []).append(side)
    following = []
    for (x0, y0), (x1, y1) in zip(starts, ends, strict=True):
        candidates = leaving[x1, y1]
        right = (x1 - (y1 - y0), y1 + (x1 - x0))
        following.append(next((side for side in candidates if ends[side] == right), candidates[0]))
    rings, is_done = [], [False] * len(starts)
    for first, side in enumerate(following):
        # Begin with a horizontal side after a vertical one, which every ring has.
        is_corner = starts[first][0] == ends[first][0] and starts[side][1] == ends[side][1]
        if is_done[side] or not is_corner:
            continue
        line, before = [], first
        while not is_done[side]:
            is_done[side] = True
            if (starts[before][0] == ends[before][0]) != (starts[side][0] == ends[side][0]):
                line.append(starts[side])
            before, side = side, following[side]
        rings.append(np.array(line))
    return rings


def _sides(mask: NDArray[np.bool_]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return starts and ends x, y of the sides of pixels between mask and background, one pixel long each."""
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]
    left, right = padded[1:-1, :-1], padded[1:-1, 1:]
    starts: list[tuple[int, int]] = []
    ends: list[tuple[int, int]] = []
    for sides, start, end in (
        (below & ~above, (0, 0), (1, 0)),
        (above & ~below, (1, 0), (0, 0)),
        (right & ~left, (0, 1), (0, 0)),
        (left & ~right, (0, 0), (0, 1)),
    ):
        places = np.argwhere(sides)[:, ::-1]
        starts += map(tuple, (places + start).tolist())
        ends += map(tuple, (places + end).tolist())
    return starts, ends


def _area(ring: NDArray[np.int64]) -> float:
    """Return the area of a ring, negative for a hole (shoelace formula)."""
    x, y = ring.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def _simplified(ring: NDArray[np.int64], tolerance: float) -> Ring:
    exact: Ring = ring.astype(np.float64)
    if tolerance <= 0:
        return exact
    kept = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, closed=True)[:, 0]
    return kept.astype(np.float64) if len(kept) > 2 and abs(_area(kept)) > 0 else exact
