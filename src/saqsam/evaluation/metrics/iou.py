"""Intersection over union of masks and of their boundaries, and its mean over a stream of instances."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import pycocotools.mask as rle_codec
import torch
from numpy.typing import NDArray

from saqsam.data.rle import rle_from_text
from saqsam.data.tight_box import tight_box

GOOD_IOU = 0.9


def share_above_90(ious: Sequence[float]) -> float | None:
    """Return the share of IoUs above 0.9; None if there are none."""
    return sum(iou > GOOD_IOU for iou in ious) / len(ious) if ious else None


def mask_iou(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Compute the IoU of P pairs of masks from exact pixel counts.

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


def agreement_iou(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Compute the IoU of P pairs of masks [P, H, W] of two models as `mask_iou` does, but 1 where both are empty."""
    both_empty = ~(masks | others).flatten(1).any(dim=1)
    return mask_iou(masks, others).masked_fill(both_empty, 1.0)


def clear_ignored(predicted: torch.Tensor, counted: NDArray[np.bool_] | None) -> torch.Tensor:
    """Clear the pixels of predicted masks that do not count, as they are clear in every true mask.

    Args:
        predicted: [P, H, W] bool.
        counted: HW bool, `Sample.counted()`; None if all pixels count.

    Returns:
        [P, H, W] bool.
    """
    if counted is None:
        return predicted
    return predicted & torch.from_numpy(counted).to(predicted.device)


def boundary_iou(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], *, dilation_ratio: float = 0.02
) -> float:
    """Compute the boundary IoU (Cheng et al., CVPR 2021): the IoU of the parts of two masks near their contours.

    Args:
        predicted: HW bool.
        truth: HW bool.
        dilation_ratio: Width of the boundary, as a share of the image's diagonal; at least one pixel. Distance to
            the nearest pixel outside is the larger of those in x and y; the border of the image counts as outside.

    Returns:
        In [0, 1]; 0 where both masks are empty.
    """
    assert predicted.shape == truth.shape, (predicted.shape, truth.shape)
    height, width = truth.shape
    reach = max(1, round(dilation_ratio * math.hypot(height, width)))
    one, other = _boundary(predicted, reach), _boundary(truth, reach)
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0


def _boundary(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask at most `reach` pixels from one outside it."""
    boundary = np.zeros_like(mask)
    box = tight_box(mask)
    if box is None:
        return boundary
    inside = np.s_[box[1] : box[3], box[0] : box[2]]
    # All beyond the bounding box is outside, so a ring of zeros stands for it.
    crop = np.pad(mask[inside].astype(np.uint8), reach)
    square = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
    core = cv2.erode(crop, square)[reach:-reach, reach:-reach]
    boundary[inside] = mask[inside] & (core == 0)
    return boundary


def rle_ious(one: Sequence[str], other: Sequence[str], size: Sequence[int]) -> NDArray[np.float64]:
    """Compute the IoU of each mask of one list with each of another.

    Args:
        one: N masks as the `counts` of COCO compressed run lengths.
        other: M masks.
        size: (height, width) of all.

    Returns:
        [N, M] float64 in [0, 1].
    """
    if not one or not other:
        return np.zeros((len(one), len(other)))
    first, second = ([rle_from_text(counts, size) for counts in masks] for masks in (one, other))
    ious: NDArray[np.float64] = np.asarray(rle_codec.iou(first, second, [0] * len(second)))
    return ious.reshape(len(one), len(other))


def differing_pixels(one: str, other: str, size: Sequence[int]) -> int:
    """Count the pixels that belong to exactly one of two masks.

    Args:
        one: First mask, as `counts` of COCO compressed run lengths.
        other: Second mask.
        size: (height, width) of both.
    """
    pair = [rle_from_text(counts, size) for counts in (one, other)]
    both, either = (int(rle_codec.area(rle_codec.merge(pair, intersect=how))) for how in (True, False))
    return either - both


def fill_box(box: tuple[float, float, float, float], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask that a box covers: all pixels whose center lies inside.

    Args:
        box: xyxy in pixels.
        size: (height, width) of the mask.

    Returns:
        HW bool.
    """
    mask = np.zeros(size, dtype=bool)
    # Pixel i has its center at i + 0.5, so the first inside is the first i >= x0 - 0.5.
    x0, y0, x1, y1 = (max(0, math.ceil(edge - 0.5)) for edge in box)
    mask[y0:y1, x0:x1] = True
    return mask


class MeanIoU:
    """Mean IoU over all instances of a dataset, updated image by image."""

    def __init__(self) -> None:
        self._ious: list[float] = []

    def update(self, ious: torch.Tensor) -> None:
        """Add the IoUs [P] of some instances."""
        self._ious.extend(ious.tolist())

    def compute(self) -> float:
        """Return the mean of all IoUs so far, with equal weights.

        Raises:
            ValueError: There are none.
        """
        if not self._ious:
            raise ValueError("mean IoU: expected at least one instance, got none")
        return math.fsum(self._ious) / len(self._ious)

    def reset(self) -> None:
        """Forget all instances."""
        self._ious.clear()

    def __len__(self) -> int:
        return len(self._ious)
