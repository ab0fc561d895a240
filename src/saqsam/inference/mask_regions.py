"""Removal of small holes and islands from masks."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def remove_small_regions(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill the holes of a mask, then remove its islands, where these have fewer than `min_area` pixels.

    Regions are connected over edges and corners. Every region outside the mask counts as a hole, also at the image's
    border. If all islands are small, the largest stays.

    Args:
        mask: HW bool.
        min_area: Smallest area in pixels that stays as it is.

    Returns:
        The mask, HW bool, and whether it differs from the input.
    """
    filled = mask | _small_regions(~mask, min_area, keep_largest=False)
    islands = _small_regions(filled, min_area, keep_largest=True)
    cleaned = filled & ~islands
    return cleaned, bool((cleaned != mask).any())


def _small_regions(mask: NDArray[np.bool_], min_area: int, *, keep_largest: bool) -> NDArray[np.bool_]:
    """Return the pixels of the small regions of a mask, HW bool.

    Args:
        mask: HW bool.
        min_area: Area in pixels below which a region is small.
        keep_largest: Leave out the largest region if all are small.
    """
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_area
    small[0] = False  # the pixels outside the mask
    if keep_largest and count > 1 and small[1:].all():
        small[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))] = False
    chosen: NDArray[np.bool_] = small[regions]
    return chosen
