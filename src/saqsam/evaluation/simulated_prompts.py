"""Prompts simulated from the ground truth: boxes, the point deepest inside an object, corrective clicks."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from saqsam.data.tight_box import tight_box
from saqsam.data.types import Instance


def interior_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the pixel of a mask that is farthest from the edge of the mask.

    The distance is Euclidean, to the nearest pixel outside the mask; the border of the image counts as edge. The first
    such pixel in reading order is taken.

    Args:
        mask: HW bool.

    Returns:
        Indices (x, y) of the pixel in the image, as SAM expects points; SAM adds half a pixel itself.

    Raises:
        ValueError: The mask is empty.
    """
    box = tight_box(mask)
    if box is None:
        raise ValueError(
            f"mask: expected at least one pixel, got an empty {mask.shape[0]} x {mask.shape[1]} mask"
        )
    left, top, right, bottom = box
    # All that lies outside the bounding box is outside the mask too, so one ring of zeros stands for it.
    crop = np.pad(mask[top:bottom, left:right], 1).astype(np.uint8)
    distance = cv2.distanceTransform(crop, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return (left + int(x) - 1, top + int(y) - 1)


def next_click(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[tuple[int, int], int] | None:
    """Return the corrective click of a careful user: the point deepest inside the largest wrong region.

    Regions are 8-connected, and missing regions are separate from excess ones. A missing region comes before an equally
    large excess one.

    Args:
        predicted: HW bool, the mask so far; empty before the first click.
        truth: HW bool.

    Returns:
        Point (x, y) in pixels and its label: 1 where the object is missing, 0 where the mask is in excess. None if the
        mask is right everywhere.
    """
    largest, click = 0, None
    for wrong, label in ((truth & ~predicted, 1), (predicted & ~truth, 0)):
        if not wrong.any():
            continue
        _, regions, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8), connectivity=8)
        best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[best, cv2.CC_STAT_AREA] > largest:
            largest = int(stats[best, cv2.CC_STAT_AREA])
            click = (interior_point(regions == best), label)
    return click


def box_prompts(instances: Sequence[Instance]) -> NDArray[np.float64]:
    """Return the boxes of P instances, [P, 4] xyxy in original-image pixels."""
    return np.array([instance.box for instance in instances], dtype=np.float64).reshape(-1, 4)


def point_prompts(instances: Sequence[Instance]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the `interior_point` of each of P instances.

    Returns:
        Points [P, 1, 2] as x, y in original-image pixels, and their labels [P, 1], all 1.
    """
    points = [interior_point(instance.mask()) for instance in instances]
    return (
        np.array(points, dtype=np.float64).reshape(-1, 1, 2),
        np.ones((len(points), 1), dtype=np.int64),
    )
