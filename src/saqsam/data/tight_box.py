"""The smallest box around the pixels of a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the bounding box of a mask, or None if it is empty.

    Args:
        mask: HW bool.

    Returns:
        xyxy in pixels, with exclusive ends.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
