"""Read label maps from PNG files: one channel of 8 or 16 bits, the class of each pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saqsam.data.images import decode_image

LabelMap = NDArray[np.uint16]
"""HW at the size of the image: the class of each pixel, or `IGNORE`."""

IGNORE = 65535
"""Label of pixels to ignore. Files use the largest value of their bit depth: 255 in 8 bits, 65535 in 16."""


_MODES = {2: "LA", 3: "RGB", 4: "RGBA"}


class NoLabels(ValueError):
    """Raised for a readable image whose values are not labels: colors, or more than 16 bits."""


def read_label_map(path: Path) -> LabelMap:
    """Read a label map.

    Args:
        path: PNG of 8 or 16 bits and one channel; the labels of a palette image are its indices.

    Raises:
        ValueError: The file is missing, not a readable image, or has more than `images.MAX_PIXELS` pixels.
        NoLabels: It has several channels, or values that are not integers of at most 16 bits.
    """
    try:
        values = decode_image(path, np.asarray)
    except ValueError as error:
        # The message is kept in evaluation records, which hold no paths.
        raise ValueError(str(error).replace(str(path), path.name)) from error
    if values.ndim > 2 or np.issubdtype(values.dtype, np.floating):
        mode = "F" if values.ndim == 2 else _MODES.get(values.shape[2], f"of {values.shape[2]} channels")
        raise NoLabels(f"{path.name}: expected one channel of 8 or 16 bits, got mode {mode}")
    if values.min(initial=0) < 0 or values.max(initial=0) > IGNORE:
        raise NoLabels(
            f"{path.name}: expected labels of at most 16 bits, got {values.min()} to {values.max()}"
        )
    labels: LabelMap = values.astype(np.uint16)
    if values.dtype == np.uint8:
        labels[values == 255] = IGNORE
    return labels
