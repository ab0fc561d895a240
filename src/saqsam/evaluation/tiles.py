"""Cutting an image that is larger than a model can see well into tiles, each box in exactly one of them.

As data sets of aerial images are cut (DOTA: 1024 px with 200 px of overlap). Detectors look at every tile and then
merge what two of them found twice. Prompts are there beforehand, so each goes to the one tile that shows it best, and
nothing has to be merged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tile(NamedTuple):
    """A part of an image, xyxy in its pixels, with exclusive ends."""

    x0: int
    y0: int
    x1: int
    y1: int


def assign_tiles(
    boxes: NDArray[np.float64], size: tuple[int, int], tile: int, overlap: int
) -> dict[Tile, list[int]]:
    """The tile for each box.

    Along each axis, tiles start every `tile - overlap` pixels, and the last one ends with the image. A box goes to
    the tile that it lies in wholly, of several to the one whose centre is nearest to its own. If it lies in none
    along an axis, it gets a tile of its own along this axis, around its centre, as far as possible within the image:
    `tile` pixels, or its own side and `overlap` more if that is longer. What of a box is outside the image does not
    count.

    Args:
        boxes: [P, 4] xyxy in pixels; each meets the image.
        size: (height, width) of the image.
        tile: Side of a tile in pixels.
        overlap: Pixels that neighbours share; less than `tile`.

    Returns:
        Positions of boxes by tile; an image that is no larger than a tile is one. No tile is without boxes.
    """
    height, width = size
    assigned: dict[Tile, list[int]] = {}
    for place, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        columns = _interval(max(x0, 0.0), min(x1, width), width, tile, overlap)
        rows = _interval(max(y0, 0.0), min(y1, height), height, tile, overlap)
        assigned.setdefault(Tile(columns[0], rows[0], columns[1], rows[1]), []).append(place)
    return assigned


def _interval(low: float, high: float, length: int, tile: int, overlap: int) -> tuple[int, int]:
    """The pixels that a tile takes along an axis for a box from `low` to `high`."""
    if length <= tile:
        return 0, length
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    centre = (low + high) / 2
    holding = [start for start in starts if start <= low and high <= start + tile]
    if holding:
        start = min(holding, key=lambda start: abs(start + tile / 2 - centre))
        return start, start + tile
    first, end = math.floor(low), math.ceil(high)  # the pixels that it meets
    side = min(length, max(tile, end - first + overlap))
    start = min(max(round(centre - side / 2), end - side, 0), first, length - side)
    return start, start + side
