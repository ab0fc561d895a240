"""Options of the automatic mask generator, under the names of `segment_anything`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqsam.utils.arrays import to_array
from saqsam.utils.errors import shorten


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of `MaskGenerator`, with the names and defaults of `SamAutomaticMaskGenerator`.

    Attributes:
        points_per_side: Points along a side of the grid, which has the square of that number.
        pred_iou_thresh: Predicted IoU that a mask has to exceed; 0 keeps all.
        stability_score_thresh: Stability score that a mask has to exceed; 0 keeps all.
        stability_score_offset: The stability score is the IoU of the pixels above this logit and above its negative.
        box_nms_thresh: IoU of boxes above which the mask with the lower predicted IoU is dropped, within a crop.
        crop_n_layers: Number of crop layers; layer k has 4^k overlapping crops, and 0 uses the whole image alone. A
            layer is skipped if its grid has no point or a side of the image has fewer than 4^k pixels.
        crop_nms_thresh: As `box_nms_thresh`, for masks of different crops.
        crop_overlap_ratio: Overlap of the crops of layer 1, as a fraction of the image's shorter side.
        crop_n_points_downscale_factor: Layer k has a grid of points_per_side / factor^k points a side.
        min_mask_region_area: Area in pixels below which holes are filled and islands removed; 0 changes nothing.

    Raises:
        ValueError: A value is out of its range.
    """

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0

    def __post_init__(self) -> None:
        minimum = {
            "points_per_side": 1,
            "crop_n_points_downscale_factor": 1,
            "crop_n_layers": 0,
            "min_mask_region_area": 0,
        }
        for name, low in minimum.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ValueError(
                f"crop_overlap_ratio: expected 0 or more and below 1, got {self.crop_overlap_ratio}"
            )
        if not (math.isfinite(self.stability_score_offset) and self.stability_score_offset >= 0):
            raise ValueError(
                f"stability_score_offset: expected at least 0, got {self.stability_score_offset}"
            )


class OptionKeywords(TypedDict, total=False):
    """Keywords of `MaskGenerator`: the fields of `GeneratorOptions`. `points_per_side` is None with point grids."""

    points_per_side: int | None
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    min_mask_region_area: int


def merge_options(
    options: GeneratorOptions | None, keywords: OptionKeywords, *, has_grids: bool
) -> GeneratorOptions:
    """Return the options with the keywords applied, after a check that there is one kind of grid."""
    if options is None:
        options = GeneratorOptions()
    elif not isinstance(options, GeneratorOptions):
        raise ValueError(
            f"options: expected GeneratorOptions, got {shorten(options)}; pass values as keywords, such as "
            "points_per_side=32"
        )
    changes: dict[str, Any] = dict(keywords)
    if changes.get("points_per_side", options.points_per_side) is None:
        if not has_grids:
            raise ValueError("points_per_side: expected a number, or point_grids instead of it, got None")
        del changes["points_per_side"]
    elif has_grids and "points_per_side" in changes:
        raise ValueError("point_grids: expected points_per_side=None with explicit grids, got both")
    return replace(options, **changes)


def check_grids(grids: Sequence[ArrayLike], options: GeneratorOptions) -> tuple[NDArray[np.float64], ...]:
    """Return the point grids of all crop layers as arrays [P, 2]."""
    arrays = tuple(to_array(grid, "point_grids").astype(np.float64) for grid in grids)
    if len(arrays) <= options.crop_n_layers:
        raise ValueError(
            f"point_grids: expected a grid for each of {options.crop_n_layers + 1} layers, got {len(arrays)}"
        )
    for grid in arrays:
        if grid.ndim != 2 or grid.shape[1] != 2:
            raise ValueError(f"point_grids: expected arrays [P, 2] of x, y, got shape {grid.shape}")
        if not ((grid >= 0) & (grid < 1)).all():
            raise ValueError("point_grids: expected x, y of at least 0 and below 1, got others")
    return arrays
