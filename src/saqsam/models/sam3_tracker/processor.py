"""The image processor of SAM 3: that of SAM 2 with other statistics, as transformers' `Sam3ImageProcessor`."""

from __future__ import annotations

from typing import ClassVar

from saqsam.models.processors.stretched import StretchImageProcessor

_HALF = (0.5, 0.5, 0.5)


class Sam3StretchImageProcessor(StretchImageProcessor):
    """Image processor that normalizes pixels to -1 to 1."""

    size: ClassVar = {"height": 1008, "width": 1008}
    mask_size: ClassVar = {"height": 288, "width": 288}
    image_mean: ClassVar = list(_HALF)
    image_std: ClassVar = list(_HALF)
    stored_type = "Sam3ImageProcessor"
