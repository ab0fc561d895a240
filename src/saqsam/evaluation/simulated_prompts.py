"""Prompts made from the ground truth: a box, the point deepest inside an object, clicks where a mask is wrong."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from saqsam.data.types import Instance


def interior_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel of a mask that is farthest from the mask's edge.

    Distance is Euclidean, to the nearest pixel outside the mask; the border of the image counts as edge. Of
    several such pixels the first in reading order is taken.

    Args:
        mask: HW bool.

    Returns:
        (x, y), the pixel's indices in the image, as SAM expects points: it adds half a pixel itself.

    Raises:
        ValueError: The mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        raise ValueError(
            f"mask: expected at least one pixel, got an empty {mask.shape[0]} x {mask.shape[1]} mask"
        )
    top, left = int(rows[0]), int(columns[0])
    # All that lies outside the bounding box is outside the mask too, so one ring of zeros stands for it.
    crop = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.uint8)
    distance = cv2.distanceTransform(crop, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return (left + int(x) - 1, top + int(y) - 1)


def next_click(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[tuple[int, int], int] | None:
    """The click that a careful user would make next: deepest inside the largest region where the mask is wrong.

    Regions are connected over edges and corners, those that are missing apart from those that are too much. Of two
    equally large, one that is missing comes first.

    Args:
        predicted: HW bool, the mask so far; empty before the first click.
        truth: HW bool.

    Returns:
        (x, y) in pixels, and its label: 1 where the object is missing, 0 where the mask is too large. None where the
        mask is right everywhere.
    """
    largest, found = 0, None
    for wrong, label in ((truth & ~predicted, 1), (predicted & ~truth, 0)):
        if not wrong.any():
            continue
        _, regions, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8), connectivity=8)
        best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[best, cv2.CC_STAT_AREA] > largest:
            largest = int(stats[best, cv2.CC_STAT_AREA])
            found = (interior_point(regions == best), label)
    return found


def box_prompts(instances: Sequence[Instance]) -> NDArray[np.float64]:
    """The boxes of P instances: [P, 4] xyxy in original-image pixels."""
    return np.array([instance.box for instance in instances], dtype=np.float64).reshape(-1, 4)


def point_prompts(instances: Sequence[Instance]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """One point on each of P instances, its `interior_point`.

    Returns:
        Points [P, 1, 2] as x, y in original-image pixels, and their labels [P, 1], all 1.
    """
    points = [interior_point(instance.mask()) for instance in instances]
    return (
        np.array(points, dtype=np.float64).reshape(-1, 1, 2),
        np.ones((len(points), 1), dtype=np.int64),
    )
