"""Label maps as PNG files: one channel of 8 or 16 bits, a class for each pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saqsam.data.images import decode_image

LabelMap = NDArray[np.uint16]
"""HW at the size of the image: the class of each pixel, or `IGNORE`."""

IGNORE = 65535
"""Of pixels without a label. Files say it with the largest value they can hold: 255 in 8 bits, 65535 in 16."""


def read_label_map(path: Path) -> LabelMap:
    """Read a label map.

    Args:
        path: PNG of 8 or 16 bits and one channel; of a picture with a palette the indices are the labels.

    Raises:
        ValueError: No such file, no readable image, more than `images.MAX_PIXELS` pixels, or several channels.
    """
    try:
        labels: LabelMap = decode_image(path, _to_labels)
    except ValueError as error:
        # Records say what was wrong with a map, and records hold no paths.
        raise ValueError(str(error).replace(str(path), path.name)) from error
    return labels


def _to_labels(image: Image.Image) -> LabelMap:
    mode, values = image.mode, np.asarray(image)
    if mode not in ("L", "P") and not mode.startswith("I"):
        raise ValueError(f"expected one channel of 8 or 16 bits, got mode {mode}")
    if values.min(initial=0) < 0 or values.max(initial=0) > IGNORE:
        raise ValueError(f"expected labels of at most 16 bits, got {values.min()} to {values.max()}")
    labels: LabelMap = values.astype(np.uint16)
    if mode in ("L", "P"):
        labels[values == 255] = IGNORE
    return labels
