"""Images in the orientation in which their files store them, before EXIF rotation."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

_ROTATED = (5, 6, 7, 8)
"""EXIF orientations that exchange rows and columns."""
_METADATA_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    LookupError,
    TypeError,
    OverflowError,
)
"""Raised by Pillow for damaged EXIF blocks, which `read_image` ignores."""


def read_rotation(path: Path) -> int | None:
    """Return the EXIF orientation of an image file if it exchanges height and width (5 to 8), else None.

    A damaged EXIF block rotates nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata.
        try:
            with Image.open(path) as image:
                orientation = image.getexif().get(ExifTags.Base.Orientation)
        except _METADATA_ERRORS:
            return None
    return orientation if orientation in _ROTATED else None


def undo_rotation(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return an upright image as its file stores it.

    Args:
        image: HWC, as `read_image` returns it.
        orientation: EXIF orientation, 5 to 8.

    Returns:
        WHC, contiguous.
    """
    turned = image.swapaxes(0, 1)
    # A file of orientation 5 is stored transposed; of the others rows (6), columns (8) or both (7) are reversed too.
    if orientation in (6, 7):
        turned = turned[::-1]
    if orientation in (7, 8):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)
