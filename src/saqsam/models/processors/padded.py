"""Processors that resize the longest side of an image and pad it to a square: SAM v1, SAM-HQ, MobileSAM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import SamImageProcessorPil

from saqsam.models.fields import Field, take_fields
from saqsam.models.processors.settings import (
    PIXEL_FIELDS,
    check_pixels,
    check_type,
    pixel_fields,
    sides,
)
from saqsam.utils.errors import CheckpointError

_TYPES = ("SamImageProcessor", "SamImageProcessorFast", "SamImageProcessorPil")
_FIELDS: Mapping[str, Field] = {
    **PIXEL_FIELDS,
    # The model takes square images of one size, which only resizing and padding produce.
    "do_pad": Field("true", lambda v: v is True),
    "size": sides("longest_edge"),
    "pad_size": sides("height", "width"),
    # For label masks in training alone.
    "mask_size": sides("longest_edge"),
    "mask_pad_size": sides("height", "width"),
}


def build(size: int, mask_size: int) -> SamImageProcessorPil:
    """Return the image processor that SAM was trained with.

    Args:
        size: Side of the model's input in pixels.
        mask_size: Side of its low-resolution masks, the size of label masks.

    Returns:
        An image processor that resizes the longest side to `size`, normalizes with ImageNet's mean and standard
        deviation and pads at the right and the bottom.
    """
    return SamImageProcessorPil(
        size={"longest_edge": size},
        pad_size={"height": size, "width": size},
        mask_size={"longest_edge": mask_size},
        mask_pad_size={"height": mask_size, "width": mask_size},
    )


def parse(raw: Mapping[str, Any], size: int, source: str, where: str) -> SamImageProcessorPil:
    """Return the image processor that settings from a file describe.

    Args:
        raw: The settings.
        size: Side of the model's input in pixels.
        source: The file's name in error messages.
        where: Start of error messages about a field.

    Raises:
        CheckpointError: A field is illegal, or the size differs from the model's.
    """
    if not raw.keys() & {*_FIELDS, "image_processor_type"}:
        raise CheckpointError(f"{source}: expected the settings of a SAM image processor, found none")
    check_type(raw, _TYPES, where)
    processor = SamImageProcessorPil(**take_fields(raw, _FIELDS, where))
    longest, pad = processor.size["longest_edge"], processor.pad_size
    if (longest, pad.height, pad.width) != (size, size, size):
        raise CheckpointError(
            f"{source}: expected images of {size} px as in config.json, got longest edge "
            f"{longest} padded to {pad.height}x{pad.width}"
        )
    check_pixels(processor, where)
    return processor


def fields(settings: SamImageProcessorPil) -> dict[str, Any]:
    """Return every setting that affects a mask, as plain JSON types in canonical form."""
    return {
        **pixel_fields(settings),
        "do_pad": bool(getattr(settings, "do_pad", None)),
        "size": int(settings.size["longest_edge"]),
        "pad_size": [int(settings.pad_size["height"]), int(settings.pad_size["width"])],
    }
