"""One automatically generated mask, a dataclass that can also be read as `segment_anything`'s dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saqsam.data.rle import EncodedMask, rle_text, run_lengths

Box = tuple[int, int, int, int]
"""xyxy in pixels of the image, with exclusive ends."""

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
"""Form of `GeneratedMask.segmentation`, under the names of `segment_anything`."""

OUTPUT_MODES: tuple[OutputMode, ...] = get_args(OutputMode)


@dataclass(frozen=True)
class GeneratedMask(EncodedMask, Mapping[str, Any]):
    """A mask, its scores and its origin.

    A mask is also a read-only mapping with the keys of `SamAutomaticMaskGenerator`: `segmentation`, `area`, `bbox`,
    `predicted_iou`, `point_coords`, `stability_score` and `crop_box`, with boxes as XYWH. `dict(mask)` makes a
    dictionary of it. The `bbox` spans whole pixels, as in COCO: the official one is a pixel less wide and high.

    Attributes:
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}` at image resolution.
        box: Bounding box of the mask.
        predicted_iou: The model's own estimate of the IoU.
        stability_score: IoU of the pixels above `stability_score_offset` and above its negative, in [0, 1].
        point: x, y in pixels of the image, the point prompt.
        crop_box: Crop of the image that the model saw.
        output_mode: Form of `segmentation`.
    """

    rle: dict[str, Any]
    box: Box
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]
    crop_box: Box
    output_mode: OutputMode = "binary_mask"

    @property
    def segmentation(self) -> NDArray[np.bool_] | dict[str, Any]:
        """The mask in the form of `output_mode`.

        HW bool for `binary_mask`, decoded on each access; run lengths `{"size": [H, W], "counts": ...}` with counts as
        a string for `coco_rle`, and as a list of integers that starts with background for `uncompressed_rle`.
        """
        if self.output_mode == "binary_mask":
            return self.mask()
        size = [int(side) for side in self.rle["size"]]
        counts = rle_text(self.rle) if self.output_mode == "coco_rle" else run_lengths(self.rle)
        return {"size": size, "counts": counts}

    def __getitem__(self, key: str) -> Any:
        match key:
            case "segmentation" | "area" | "predicted_iou" | "stability_score":
                return getattr(self, key)
            case "bbox":
                return _xywh(self.box)
            case "crop_box":
                return _xywh(self.crop_box)
            case "point_coords":
                return [list(self.point)]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)


_KEYS = (*("segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"),)
"""Keys of `segment_anything`'s dictionaries, in its order."""


def _xywh(box: Box) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
