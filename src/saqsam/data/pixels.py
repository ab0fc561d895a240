"""Convert pixels of any type and range to RGB with 8 bits per channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saqsam.data.decoding import ImageError
from saqsam.utils.errors import shorten

BIT_DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths assumed for integers of more than 8 bits, unless a file states another one."""

WHITE_16 = 2**16 - 1

_FLOAT_TOLERANCE = 0.5 / 255
"""Distance that floats may lie outside [0, 1], as they do after interpolation: half a gray level."""

_SAMPLES_AT_ONCE = 2**22
"""Samples converted at once, which bounds the memory of temporary arrays."""


def to_rgb(values: NDArray[Any]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Convert an array of pixels to RGB.

    Args:
        values: [H, W], [H, W, 1] gray, [H, W, 3] colors or [H, W, 4] colors and alpha. Booleans are black and white;
            integers of 8 bits are kept; larger ones are scaled as `scale_integers` describes; floats are in [0, 1].

    Returns:
        image: [H, W, 3] uint8, C-contiguous and writable; possibly `values` itself. Gray is repeated, alpha dropped.
        notes: Assumptions about the range, for messages.

    Raises:
        ImageError: The array has another shape, or values outside these ranges.
    """
    check_shape(values.shape)
    colors = values[:, :, None] if values.ndim == 2 else values[:, :, :3]
    gray, notes = to_8_bits(colors)
    return np.require(np.broadcast_to(gray, (*gray.shape[:2], 3)), requirements=["C", "W"]), notes


def to_8_bits(values: NDArray[Any]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Convert samples of any shape and type to uint8, with the rules of `to_rgb`."""
    if values.dtype == np.uint8:
        return values, ()
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), ()
    if np.issubdtype(values.dtype, np.integer):
        if values.dtype != np.uint16 and values.max() <= 255 and values.min() >= 0:
            return values.astype(np.uint8), ()  # such as a list of numbers: its type says nothing of a range
        scaled, white = scale_integers(values)
        return scaled, describe_scale(white)
    if np.issubdtype(values.dtype, np.floating):
        return scale_floats(values), ()
    raise ImageError(f"expected integers, floats or booleans, found values of type {values.dtype}")


def scale_integers(values: NDArray[Any], stated_white: int | None = None) -> tuple[NDArray[np.uint8], int]:
    """Scale integers of up to 16 bits to [0, 255].

    The stated white value becomes 255. If none is stated, or the data exceed it, white is the largest value of the
    smallest of `BIT_DEPTHS` that holds the data. It never depends on the exact maximum, so that images of one bit
    depth keep their relative brightness.

    Args:
        values: Integers of any shape.
        stated_white: White value that the file states; None if it states none.

    Returns:
        The samples, uint8, and the white value, which became 255.

    Raises:
        ImageError: A value is negative or above 65535.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise ImageError(
            f"expected values from 0 to {WHITE_16}, found {low} to {high}: add an offset, or choose a window "
            "and convert it to 8 bits"
        )
    if high > WHITE_16:
        raise ImageError(
            f"expected integers of at most 16 bits, found {low} to {high}, which take 32-bit integers: "
            "scale them and convert to 8 or 16 bits"
        )
    if stated_white is None:
        white = 2 ** next(bits for bits in BIT_DEPTHS if high < 2**bits) - 1
    else:
        white = stated_white if high <= stated_white else WHITE_16
    table = np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)
    scaled = np.empty(values.shape, np.uint8)
    for rows in row_blocks(values.shape):
        scaled[rows] = table[values[rows]]
    return scaled, white


def scale_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale floats in [0, 1] to [0, 255].

    Raises:
        ImageError: A value is not finite or lies outside [0, 1].
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= -_FLOAT_TOLERANCE and high <= 1 + _FLOAT_TOLERANCE):  # false for NaN as well
        raise ImageError(
            f"expected floating point values in [0, 1], found {low:g} to {high:g}: divide them by their white value, "
            "or convert to uint8"
        )
    scaled = np.empty(values.shape, np.uint8)
    for rows in row_blocks(values.shape):
        scaled[rows] = np.rint(np.clip(values[rows].astype(np.float32), 0, 1) * 255)
    return scaled


def describe_scale(white: int) -> tuple[str, ...]:
    """Return the note on samples that were not scaled by the full range of 16 bits."""
    return () if white == WHITE_16 else (f"pixel values scaled as {white.bit_length()}-bit data",)


def picture_to_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Convert a decoded Pillow image of any mode to RGB, with the rules of `to_rgb`.

    Alpha is dropped, which keeps the colors stored under transparent pixels.
    """
    if is_deep_gray(image):
        return to_rgb(np.asarray(image))
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for rows, strip in strips(image):
        rgb[rows] = np.asarray(strip.convert("RGB"))
    return rgb, ()


def strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Cut a decoded image into strips of rows, which bounds the memory of conversions."""
    for rows in row_blocks((image.height, image.width)):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def is_deep_gray(image: Image.Image) -> bool:
    """Return whether a Pillow image has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut the first axis of an array into blocks of about `_SAMPLES_AT_ONCE` samples."""
    rows = max(1, _SAMPLES_AT_ONCE * shape[0] // max(1, int(np.prod(shape))))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise ImageError unless a shape is that of one image: HW, HWx1, HWx3 or HWx4, with at least one pixel."""
    if 0 in shape:
        raise ImageError(f"expected at least one pixel, found shape {shape}")
    if len(shape) == 2:
        return
    # Three rows of one or four columns are taken for three channels: no picture has that shape.
    if len(shape) == 3 and (shape[2] == 3 or (shape[2] in (1, 4) and shape[0] != 3)):
        return
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        raise ImageError(
            f"expected channels last (HWC), found shape {shape}: call image.transpose(1, 2, 0) on an array or "
            "image.permute(1, 2, 0) on a tensor"
        )
    raise ImageError(
        f"expected one image with HWC or HW layout and 1, 3 or 4 channels, found shape {shorten(shape)}"
    )
