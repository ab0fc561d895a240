"""Processors that stretch an image to a square, whatever its aspect ratio: SAM 2, EdgeTAM, SAM 3.

transformers' own image processors of these models need torchvision. `StretchImageProcessor` does the same with Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SamImageProcessorPil
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict

from saqsam.models.fields import Field, take_fields
from saqsam.models.processors.settings import (
    PIXEL_FIELDS,
    check_pixels,
    check_type,
    pixel_fields,
    sides,
)
from saqsam.utils.errors import CheckpointError

_TYPES = ("Sam2ImageProcessor", "Sam2ImageProcessorFast", "Sam3ImageProcessor", "Sam3ImageProcessorFast")
_FIELDS: Mapping[str, Field] = {
    **PIXEL_FIELDS,
    "do_pad": Field("false", lambda v: v is False),
    "size": sides("height", "width"),
    "mask_size": sides("height", "width"),
}


class StretchImageProcessor(SamImageProcessorPil):  # type: ignore[misc]
    """Image processor with the settings and calls of transformers' `Sam2ImageProcessor`, which resizes with Pillow.

    Its files name transformers' class, so that they can be used without saqsam.

    Attributes:
        stored_type: Name of that class.
    """

    stored_type = _TYPES[0]
    size: ClassVar = {"height": 1024, "width": 1024}
    mask_size: ClassVar = {"height": 256, "width": 256}
    do_pad = False
    pad_size = None
    mask_pad_size = None

    def resize(
        self, image: NDArray[Any], size: SizeDict, resample: Any = None, **kwargs: Any
    ) -> NDArray[np.generic]:
        """Resize an image [C, h, w] to the height and width of `size`."""
        resized: NDArray[np.generic] = super(SamImageProcessorPil, self).resize(
            image, size=size, resample=resample, **kwargs
        )
        return resized

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Resize and normalize images.

        Returns:
            `pixel_values` [B, 3, S, S] float32 and `original_sizes` [B, 2] as height and width; with
            `segmentation_maps`, `labels`.
        """
        features = super().preprocess(images, segmentation_maps, **kwargs)
        features.pop("reshaped_input_sizes")
        return features

    def post_process_masks(
        self,
        masks: Sequence[Any],
        original_sizes: Any,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        *_: Any,
        **__: Any,
    ) -> list[torch.Tensor]:
        """Resize low-resolution masks to the sizes of the images.

        Args:
            masks: Logits [..., 4h, 4w] of each image.
            original_sizes: (height, width) of each image.
            mask_threshold: Logit above which a pixel belongs to a mask.
            binarize: Return masks instead of logits.

        Returns:
            [..., H, W] for each image, bool or float32.
        """
        sizes = original_sizes.tolist() if hasattr(original_sizes, "tolist") else original_sizes
        resized = []
        for logits, size in zip(masks, sizes, strict=True):
            upscaled = torch.nn.functional.interpolate(
                torch.as_tensor(logits).float(), tuple(size), mode="bilinear", align_corners=False
            )
            resized.append(upscaled > mask_threshold if binarize else upscaled)
        return resized

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types, under the name of transformers' class."""
        values: dict[str, Any] = super().to_dict()
        return {**values, "image_processor_type": self.stored_type}


def build(
    size: int, mask_size: int, kind: type[StretchImageProcessor] = StretchImageProcessor
) -> StretchImageProcessor:
    """Return the image processor that SAM 2, or the family with its own class of image processors, was trained with.

    Args:
        size: Side of the model's input in pixels.
        mask_size: Side of its low-resolution masks, the size of label masks.
        kind: Class of the image processor.

    Returns:
        An image processor that resizes to a square and normalizes with the default statistics of its class.
    """
    return kind(size={"height": size, "width": size}, mask_size={"height": mask_size, "width": mask_size})


def parse(
    raw: Mapping[str, Any],
    size: int,
    source: str,
    where: str,
    kind: type[StretchImageProcessor] = StretchImageProcessor,
) -> StretchImageProcessor:
    """Return the image processor, of a class, that settings from a file describe; see `padded.parse`.

    Raises:
        CheckpointError: A field is illegal, or the size differs from the model's.
    """
    if not raw.keys() & {*_FIELDS, "image_processor_type"}:
        raise CheckpointError(f"{source}: expected the settings of a SAM 2 image processor, found none")
    check_type(raw, _TYPES, where)
    processor = kind(**take_fields(raw, _FIELDS, where))
    height, width = processor.size["height"], processor.size["width"]
    if (height, width) != (size, size):
        raise CheckpointError(
            f"{source}: expected images of {size} px as in config.json, got {height}x{width}"
        )
    check_pixels(processor, where)
    return processor


def fields(settings: StretchImageProcessor) -> dict[str, Any]:
    """Return every setting that affects a mask, as plain JSON types in canonical form."""
    return {**pixel_fields(settings), "size": [int(settings.size["height"]), int(settings.size["width"])]}
