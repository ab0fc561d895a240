"""The EXIF orientation of image files."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

from PIL import ExifTags, Image


def read_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, 1 to 8; 1, as it is stored, where none can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata.
        # Pillow's EXIF parser raises exceptions of any type on damaged metadata, which then counts as absent.
        with contextlib.suppress(Exception), Image.open(path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            if isinstance(orientation, int) and 1 <= orientation <= 8:
                return orientation
    return 1
