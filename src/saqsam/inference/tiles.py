"""Cut large images into tiles, with each box prompt in exactly one tile.

Datasets of aerial images are cut like this (DOTA: 1024 px with 200 px of overlap). Detectors process every tile and
merge duplicate detections. Prompts are known beforehand, so each goes to the one tile that shows it best, and there
is nothing to merge.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tile(NamedTuple):
    """Part of an image, xyxy in pixels, with exclusive ends."""

    x0: int
    y0: int
    x1: int
    y1: int


def assign_tiles(
    boxes: NDArray[np.float64], size: tuple[int, int], tile: int, overlap: int
) -> dict[Tile, list[int]]:
    """Assign each box to a tile.

    Along each axis, tiles start every `tile - overlap` pixels, and the last one ends with the image. A box goes to
    the tile that contains it, or to the one of several whose center is nearest to its own. If no tile contains it
    along an axis, it gets its own tile along this axis, around its center, as far as possible within the image:
    `tile` pixels, or the side of the box plus `overlap` if that is longer. Parts of a box outside the image are
    ignored.

    Args:
        boxes: [P, 4] xyxy in pixels; each meets the image.
        size: (height, width) of the image.
        tile: Side of a tile in pixels.
        overlap: Pixels that neighbors share; less than `tile`.

    Returns:
        Positions of boxes by tile, without empty tiles. An image that is no larger than a tile is one tile.
    """
    height, width = size
    assigned: dict[Tile, list[int]] = {}
    for place, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        columns = _interval(max(x0, 0.0), min(x1, width), width, tile, overlap)
        rows = _interval(max(y0, 0.0), min(y1, height), height, tile, overlap)
        assigned.setdefault(Tile(columns[0], rows[0], columns[1], rows[1]), []).append(place)
    return assigned


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles start along an axis: every `tile - overlap` pixels, and the last one ends with the axis."""
    return [0] if length <= tile else [*range(0, length - tile, tile - overlap), length - tile]


def _interval(low: float, high: float, length: int, tile: int, overlap: int) -> tuple[int, int]:
    """Return start and end of a tile along an axis for a box from `low` to `high`."""
    if length <= tile:
        return 0, length
    starts = tile_starts(length, tile, overlap)
    center = (low + high) / 2
    holding = [start for start in starts if start <= low and high <= start + tile]
    if holding:
        start = min(holding, key=lambda start: abs(start + tile / 2 - center))
        return start, start + tile
    first, end = math.floor(low), math.ceil(high)  # the pixels that it meets
    side = min(length, max(tile, end - first + overlap))
    start = min(max(round(center - side / 2), end - side, 0), first, length - side)
    return start, start + side
