"""The IoU of every object behind a row, for paired comparisons, in files small enough to be committed."""

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
"""Largest code of stored IoUs: 16 bits have an error below 1e-5."""


def scores_file(csv: Path, key: Sequence[object]) -> Path:
    """Return the file of the scores of a row, in a folder beside its CSV file."""
    return csv.parent / "scores" / f"{'_'.join(str(value) for value in key if value not in ('', None))}.npz"


def write_scores(path: Path, scores: Sequence[InstanceScore]) -> None:
    """Write IoUs [N] and a checksum of the image and instance ids."""
    ious = np.array([score.iou for score in scores])
    ids = np.array([(score.image_id, score.instance_id) for score in scores], dtype="<i8")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, iou=np.round(ious * _STEPS).astype(np.uint16), ids=np.uint32(zlib.crc32(ids.tobytes()))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def read_scores(path: Path) -> tuple[NDArray[np.float64], int]:
    """Read IoUs [N] in the order of the dataset, and the checksum of their ids.

    Raises:
        OSError: There is no such file.
    """
    with np.load(path) as file:
        return file["iou"] / _STEPS, int(file["ids"])
