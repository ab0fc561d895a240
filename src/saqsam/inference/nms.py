"""Non-maximum suppression of boxes in NumPy, equal to `torchvision.ops.nms` without that dependency."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqsam.data.boxes import box_ious


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
    kept: list[int] = []
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[box_ious(corners[best], corners[order]) <= threshold]
    return np.array(kept, dtype=np.int64)
