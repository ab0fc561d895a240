"""NPZ: masks and scores as NumPy arrays."""

from __future__ import annotations

import io

import numpy as np

from saqsam.segmentation.formats.registry import Context, Files
from saqsam.segmentation.objects import SegmentedImage


def npz_bytes(image: SegmentedImage) -> bytes:
    """Return a compressed archive that `numpy.load` reads without pickles.

    Arrays of N objects: `masks` [N, H, W] bool, `boxes` [N, 4] xyxy in pixels, `predicted_ious`, `stability_scores`,
    `category_ids` [N], and `prompts`, text.
    """
    objects = image.objects
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        masks=np.array([one.mask() for one in objects], dtype=bool).reshape(-1, *image.size),
        boxes=np.array([one.box for one in objects], dtype=np.float64).reshape(-1, 4),
        predicted_ious=np.array([one.predicted_iou for one in objects], dtype=np.float32),
        stability_scores=np.array([one.stability_score for one in objects], dtype=np.float32),
        category_ids=np.array([one.category_id for one in objects], dtype=np.int64),
        prompts=np.array([one.prompt for one in objects], dtype=np.str_),
    )
    return buffer.getvalue()


def npz_files(image: SegmentedImage, _: Context) -> Files:
    """Yield the archive."""
    yield ".npz", npz_bytes(image)
