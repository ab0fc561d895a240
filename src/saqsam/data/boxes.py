"""Intersection over union of boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def box_ious(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of a box [4] xyxy with each of others [N, 4], float64 [N]; 0 where neither has an area."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    ious: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    return ious
