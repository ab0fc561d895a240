"""Intersection over union of masks, and its mean over a stream of instances."""

import math

import numpy as np
import torch
from numpy.typing import NDArray


def mask_iou(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """IoU of P pairs of masks, from exact pixel counts.

    Args:
        predicted: [P, H, W] bool.
        truth: [P, H, W] bool, on the same device.

    Returns:
        [P] float64 in [0, 1]; 0 where both masks are empty.
    """
    assert predicted.shape == truth.shape, (predicted.shape, truth.shape)
    intersection = (predicted & truth).sum(dim=(1, 2))
    union = (predicted | truth).sum(dim=(1, 2))
    return intersection.double() / union.clamp(min=1).double()


def fill_box(box: tuple[float, float, float, float], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask that a box covers: all pixels whose centre lies inside.

    Args:
        box: xyxy in pixels.
        size: (height, width) of the mask.

    Returns:
        HW bool.
    """
    mask = np.zeros(size, dtype=bool)
    # Pixel i has its centre at i + 0.5, so the first inside is the first i >= x0 - 0.5.
    x0, y0, x1, y1 = (max(0, math.ceil(edge - 0.5)) for edge in box)
    mask[y0:y1, x0:x1] = True
    return mask


class MeanIoU:
    """Mean over all instances of a data set, fed image by image."""

    def __init__(self) -> None:
        self._ious: list[float] = []

    def update(self, ious: torch.Tensor) -> None:
        """Add the IoUs [P] of some instances."""
        self._ious.extend(ious.tolist())

    def compute(self) -> float:
        """Mean of all IoUs so far, each instance weighing the same.

        Raises:
            ValueError: There is none.
        """
        if not self._ious:
            raise ValueError("mean IoU: expected at least one instance, got none")
        return math.fsum(self._ious) / len(self._ious)

    def reset(self) -> None:
        """Forget all instances."""
        self._ious.clear()

    def __len__(self) -> int:
        return len(self._ious)
