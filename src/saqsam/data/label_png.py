"""Label maps as PNG files: one channel of 8 or 16 bits, a class for each pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saqsam.data.images import decode_image

LabelMap = NDArray[np.uint16]
"""HW at the size of the image: the class of each pixel, or `IGNORE`."""

IGNORE = 65535
"""Of pixels without a label. Files say it with the largest value they can hold: 255 in 8 bits, 65535 in 16."""


_MODES = {2: "LA", 3: "RGB", 4: "RGBA"}


class NoLabels(ValueError):
    """A readable image whose values are not labels: colours, or more than 16 bits."""


def read_label_map(path: Path) -> LabelMap:
    """Read a label map.

    Args:
        path: PNG of 8 or 16 bits and one channel; of a picture with a palette the indices are the labels.

    Raises:
        ValueError: No such file, no readable image, more than `images.MAX_PIXELS` pixels; as `NoLabels`: several
            channels, or values that are not integers of at most 16 bits.
    """
    try:
        values = decode_image(path, np.asarray)
    except ValueError as error:
        # Records say what was wrong with a map, and records hold no paths.
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
