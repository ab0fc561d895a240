"""Non-maximum suppression of boxes in NumPy, equal to `torchvision.ops.nms` without that dependency."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def suppress(boxes: ArrayLike, scores: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Suppress each box whose IoU with a kept box of a higher score exceeds a threshold.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N]; among equal scores the earlier box counts as higher.
        threshold: IoU in [0, 1]. A box at exactly the threshold is kept; two boxes without area have an IoU of 0.

    Returns:
        [K] int64 indices of the kept boxes, by descending score.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    kept: list[int] = []
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low = np.maximum(corners[best, :2], corners[order, :2])
        high = np.minimum(corners[best, 2:], corners[order, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        union = areas[best] + areas[order] - shared
        order = order[np.divide(shared, union, out=np.zeros_like(union), where=union > 0) <= threshold]
    return np.array(kept, dtype=np.int64)
