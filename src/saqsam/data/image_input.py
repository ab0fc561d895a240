"""Convert images in memory (arrays, tensors, PIL images) to RGB with 8 bits per channel."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from saqsam.data.decoding import ImageError, check_aspect
from saqsam.data.pixels import check_shape, picture_to_rgb, to_rgb
from saqsam.utils.arrays import to_array
from saqsam.utils.errors import shorten, shorten_message

ImageInput = ArrayLike | torch.Tensor | Image.Image
"""An image as `as_rgb` takes it."""


def as_rgb(
    image: ImageInput, image_format: str = "RGB", name: str = "image"
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Convert an image to RGB.

    Args:
        image: An array, a tensor on any device or a nested list with layout HW, HWx1 (gray), HWx3 or HWx4 (alpha is
            dropped), or a PIL image of any mode, taken as it is stored, without its EXIF orientation. uint8 is used
            as it is. Other integers hold up to 16 bits and are scaled by their bit depth; floats are in [0, 1];
            booleans are black and white. `saqsam.data.pixels` states the rules.
        image_format: Order of the channels of an array, `RGB` or `BGR`.
        name: Name of the image in error messages.

    Returns:
        image: [H, W, 3] uint8, C-contiguous and writable; possibly the input array itself.
        notes: Assumptions about the range, for messages.

    Raises:
        ValueError: The image is None or a path, has another layout, type or range, no pixel, or a side more than
            `decoding.MAX_ASPECT` times as long as the other.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"image_format: expected 'RGB' or 'BGR', got {shorten(image_format)}")
    check_image(image, name)
    try:
        if isinstance(image, Image.Image):
            rgb, notes = _from_pillow(image, image_format)
        else:
            rgb, notes = to_rgb(to_array(image, name))
        check_aspect(*rgb.shape[:2])
    except ImageError as error:
        raise ValueError(f"{name}: {error}") from error
    return (np.ascontiguousarray(rgb[:, :, ::-1]) if image_format == "BGR" else rgb), notes


def check_image(image: Any, name: str = "image") -> None:
    """Check the type of an image and the shape of an array, without looking at its pixels.

    Args:
        image: The object to check; `as_rgb` may still refuse its values.
        name: Name of the image in error messages.

    Raises:
        ValueError: The object is None, a path, a number, a dict or a set, or an array without an image's shape.
    """
    if image is None:
        raise ValueError(
            f"{name}: expected an array, a tensor or a PIL image, got None; "
            "cv2.imread returns None for a file that it cannot read"
        )
    if isinstance(image, (str, bytes, os.PathLike)):
        raise ValueError(
            f"{name}: expected pixels, got the path {shorten(image)}; read it with saqsam.data.read_image"
        )
    if isinstance(image, (dict, set, frozenset, bool, int, float)):
        raise ValueError(f"{name}: expected an array, a tensor or a PIL image, got {type(image).__name__}")
    if isinstance(image, (np.ndarray, torch.Tensor)):
        try:
            check_shape(tuple(image.shape))
        except ImageError as error:
            raise ValueError(f"{name}: {error}") from error


def _from_pillow(image: Image.Image, image_format: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    if image_format != "RGB":
        raise ImageError("expected image_format='RGB' with a PIL image, whose channels are in that order")
    try:
        image.load()
    except Exception as error:  # decoders raise exceptions of any type on damaged files
        reason = shorten_message(error) or type(error).__name__
        raise ImageError(f"expected a readable PIL image ({reason})") from error
    return picture_to_rgb(image)
