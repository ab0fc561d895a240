"""Label maps as PNG files: one channel of 8 or 16 bits, a class for each pixel."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saqsam.data.images import MAX_PIXELS

LabelMap = NDArray[np.uint16]
"""HW at the size of the image: the class of each pixel, or `IGNORE`."""

IGNORE = 65535
"""Of pixels without a label. Files say it with the largest value they can hold: 255 in 8 bits, 65535 in 16."""

_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    IndexError,
    TypeError,
    OverflowError,
)
"""What Pillow raises on damaged data."""


def read_label_map(path: Path) -> LabelMap:
    """Read a label map.

    Args:
        path: PNG of 8 or 16 bits and one channel; of a picture with a palette the indices are the labels.

    Raises:
        ValueError: No such file, no readable image, more than `MAX_PIXELS` pixels, or several channels.
    """
    if not path.is_file():
        raise ValueError(
            f"{path.name}: expected a label map, found {'a folder' if path.is_dir() else 'nothing'}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of sizes and metadata
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"more than {MAX_PIXELS} pixels")
                mode, values = image.mode, np.asarray(image)
        except (*_DECODE_ERRORS, Image.DecompressionBombError) as error:
            raise ValueError(f"{path.name}: expected a readable label map ({error})") from error
    if mode not in ("L", "P") and not mode.startswith("I"):
        raise ValueError(f"{path.name}: expected one channel of 8 or 16 bits, got mode {mode}")
    if values.min(initial=0) < 0 or values.max(initial=0) > IGNORE:
        raise ValueError(
            f"{path.name}: expected labels of at most 16 bits, got {values.min()} to {values.max()}"
        )
    labels: LabelMap = values.astype(np.uint16)
    if mode in ("L", "P"):
        labels[values == 255] = IGNORE
    return labels
