"""Greedy non-maximum suppression of boxes, as `torchvision.ops.nms` does it, which is no dependency."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def suppress(boxes: ArrayLike, scores: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Leave out each box whose IoU with a kept box of a higher score is above a threshold.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N]; of equal ones the earlier counts as higher.
        threshold: In [0, 1]; an IoU equal to it is no reason to leave a box out, nor is that of two boxes without area.

    Returns:
        Positions of the kept boxes, by falling score.
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
