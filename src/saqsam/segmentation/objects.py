"""The masks of an image, with what led to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycocotools.mask as rle_codec

from saqsam.data.rle import EncodedMask

Box = tuple[float, float, float, float]
"""xyxy in pixels of the image, with exclusive ends."""

OBJECT = 1
"""Category id of objects without a category."""

NO_CATEGORIES: Mapping[int, str] = {OBJECT: "object"}


@dataclass(frozen=True)
class SegmentedObject(EncodedMask):
    """One mask.

    Attributes:
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}` at the size of the image.
        predicted_iou: The model's own estimate of the IoU.
        stability_score: IoU of the pixels with logits above 1 and above -1, in [0, 1].
        prompt: The prompt as text, such as `box 10,20,50,60`.
        category_id: Category of the prompt.
        score: Confidence of the detector that gave the prompt, or None.
    """

    rle: dict[str, Any]
    predicted_iou: float
    stability_score: float
    prompt: str
    category_id: int = OBJECT
    score: float | None = None

    @property
    def box(self) -> Box:
        """Bounding box of the mask; zeros for an empty one."""
        x, y, width, height = rle_codec.toBbox(self.rle).tolist()
        return (x, y, x + width, y + height)


@dataclass(frozen=True)
class SegmentedImage:
    """The masks of an image.

    Attributes:
        image_id: Number of the image, unique in its source.
        name: Path of the image relative to its source, with `/`; the names of outputs derive from it.
        size: (height, width).
        objects: The masks, in the order of the prompts.
        path: The image file, or None.
        categories: Names of the categories by id.
    """

    image_id: int
    name: str
    size: tuple[int, int]
    objects: tuple[SegmentedObject, ...]
    path: Path | None = None
    categories: Mapping[int, str] = field(default_factory=lambda: NO_CATEGORIES)

    def category(self, one: SegmentedObject) -> str:
        """Return the name of an object's category, or its number if it has none."""
        return self.categories.get(one.category_id, str(one.category_id))
