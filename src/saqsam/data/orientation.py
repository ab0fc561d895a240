"""EXIF orientation of image files: read it, apply it to masks and undo it on images."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from saqsam.data.pillow_warnings import pillow_warnings_ignored

_Scalar = TypeVar("_Scalar", bound=np.generic)

TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


def read_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, 1 to 8; 1 (upright as stored) if none can be read."""
    # Pillow warns of odd metadata, and its EXIF parser raises exceptions of any type on damaged metadata, which then
    # counts as absent.
    with pillow_warnings_ignored(), contextlib.suppress(Exception), Image.open(path) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if isinstance(orientation, int) and 1 <= orientation <= 8:
            return orientation
    return 1


def apply_orientation(stored: NDArray[_Scalar], orientation: int) -> NDArray[_Scalar]:
    """Return a stored image or mask upright.

    Args:
        stored: HW or HWC.
        orientation: One of `TRANSPOSED`.

    Returns:
        WH or WHC, contiguous.
    """
    # Orientation 5 only transposes; the stored rows (6), columns (8) or both (7) are reversed first.
    if orientation in (6, 7):
        stored = stored[::-1]
    if orientation in (7, 8):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored.swapaxes(0, 1))


def undo_orientation(upright: NDArray[_Scalar], orientation: int) -> NDArray[_Scalar]:
    """Return an upright image or mask as its file stores it; the inverse of `apply_orientation`."""
    stored = upright.swapaxes(0, 1)
    if orientation in (6, 7):
        stored = stored[::-1]
    if orientation in (7, 8):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)
