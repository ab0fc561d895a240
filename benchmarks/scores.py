"""The IoU of every single object behind a row, small enough to be committed: paired comparisons need them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saqsam.evaluation import InstanceScore
from saqsam.utils.atomic_write import write_atomic

_STEPS = 2**16 - 1
"""IoUs are kept in 16 bits: an error below 1e-5, far below what one object tells."""


def scores_file(csv: Path, key: Sequence[object]) -> Path:
    """Where the scores lie that belong to the row of a key, beside the CSV file of the row."""
    return csv.parent / "scores" / f"{'_'.join(str(value) for value in key if value not in ('', None))}.npz"


def write_scores(path: Path, scores: Sequence[InstanceScore]) -> None:
    """Write IoUs [N], and a checksum of the image and instance ids instead of these."""
    ious = np.array([score.iou for score in scores])
    ids = np.array([(score.image_id, score.instance_id) for score in scores], dtype="<i8")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, iou=np.round(ious * _STEPS).astype(np.uint16), ids=np.uint32(zlib.crc32(ids.tobytes()))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def read_scores(path: Path) -> tuple[NDArray[np.float64], int]:
    """IoUs [N] in the order of the data set, and the checksum of their ids.

    Raises:
        OSError: There is no such file.
    """
    with np.load(path) as file:
        return file["iou"] / _STEPS, int(file["ids"])
