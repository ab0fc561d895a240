"""Box prompts for images without annotations: the boxes of the model's own most confident masks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saqsam.data.tight_box import tight_box
from saqsam.inference.nms import suppress
from saqsam.inference.predictor import Predictor
from saqsam.models.processing import input_side

MAX_PROPOSAL_IOU = 0.7
"""Largest IoU of two proposed boxes."""
MIN_PROPOSAL_CELLS = 4
"""Smallest mask, in cells of the low-resolution logits, that gives a proposed box."""


def propose_boxes(
    predictor: Predictor, image: NDArray[np.uint8], max_boxes: int, *, grid: int = 8
) -> NDArray[np.float64]:
    """Propose the boxes of the model's own most confident masks, for images without annotations.

    Args:
        predictor: Predictor of the model; it is left with this image set.
        image: HWC uint8 RGB.
        max_boxes: Most boxes to return.
        grid: Points per side of the grid of point prompts.

    Returns:
        Boxes [P, 4] (xyxy, original-image pixels), most confident first; no two have an IoU above 0.7.
    """
    height, width = image.shape[:2]
    steps = (np.arange(grid) + 0.5) / grid
    points = np.stack([np.tile(steps * width, grid), np.repeat(steps * height, grid)], 1)
    predictor.set_image(image)
    chunks = list(predictor.predict_low_res(points=points[:, None], labels=np.ones((grid * grid, 1))))
    scores = torch.cat([predicted for _, predicted in chunks]).flatten()
    logits = torch.cat([low_res for low_res, _ in chunks]).flatten(0, 1)
    found = [
        (box, score) for box, score in zip(map(_mask_box, logits > 0), scores.tolist(), strict=True) if box
    ]
    if not found:
        return np.zeros((0, 4))
    cells = np.array([box for box, _ in found], dtype=np.float64)
    kept = suppress(cells, [score for _, score in found], MAX_PROPOSAL_IOU)[:max_boxes]
    # Cells of the square input -> pixels of the image; boxes are clipped to the image.
    cell = input_side(predictor.processor) / logits.shape[-1]
    input_height, input_width = predictor.input_size
    scale = np.array([width / input_width, height / input_height] * 2)
    boxes = cells[kept] * cell * scale
    boxes = np.minimum(boxes, np.array([width, height] * 2))
    kept_inside: NDArray[np.float64] = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    return kept_inside


def _mask_box(mask: Tensor) -> tuple[int, int, int, int] | None:
    """Return the tight box (xyxy, cells) of a mask [h, w]; None if it has too few cells."""
    inside = mask.cpu().numpy()
    return tight_box(inside) if np.count_nonzero(inside) >= MIN_PROPOSAL_CELLS else None
