"""Simulated label maps: the truth made as coarse and wrong as what a semantic model gives, from a seed."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from saqsam.data.label_maps import Unusable
from saqsam.data.label_png import IGNORE, LabelMap
from saqsam.data.open import SIMULATED
from saqsam.data.types import Sample

_CELLS = 40
"""Cells along the longer side of an image: a fourth of the resolution of 1/4 that SegFormer answers in at 640 px."""
_WRONG = 0.08
"""Share of cells whose label is another of the image's."""


class SimulatedLabels:
    """Coarse label maps made from the true labels, the same for the same seed and image.

    An image is cut into cells, 40 along its longer side, which take the label that most of their pixels have. Then
    each class but the most frequent one is grown by a cell, shrunk by a cell or left as it is, with equal chances, and
    8 % of the cells get a label of another class in the image. No model was asked: what is measured with these maps
    says what the masks are good for, not how good a semantic model is.

    Args:
        seed: Not negative.
    """

    def __init__(self, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self.seed = seed

    def options(self) -> dict[str, Any]:
        """See `LabelMaps.options`."""
        return {"labels": SIMULATED, "labels_seed": self.seed}

    def find(self, sample: Sample, truth: LabelMap) -> LabelMap | Unusable:
        """See `LabelMaps.find`."""
        rng = np.random.default_rng([self.seed, sample.image_id % 2**64])
        height, width = truth.shape
        classes, counts = np.unique(truth[truth != IGNORE], return_counts=True)
        if len(classes) == 0:
            return np.full(truth.shape, IGNORE, dtype=np.uint16)
        classes = classes[np.argsort(-counts, kind="stable")]
        cells = _majority(truth, classes)
        for label in classes[1:].tolist():
            change = rng.integers(3)
            if change == 0:
                cells = _grow(cells, cells == label)
            elif change == 1:
                cells = _grow(cells, cells != label)
        if len(classes) > 1:
            wrong = rng.random(cells.shape) < _WRONG
            # The k-th class after a cell's own, so that it is another one for certain.
            places = np.searchsorted(np.sort(classes), cells)
            others = np.sort(classes)[(places + rng.integers(1, len(classes), cells.shape)) % len(classes)]
            cells = np.where(wrong, others, cells)
        labels: LabelMap = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
        return labels


def _majority(truth: LabelMap, classes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The label that most pixels of each cell have; where none has any, that of the first class."""
    height, width = truth.shape
    side = max(height, width) / _CELLS
    size = (max(1, round(width / side)), max(1, round(height / side)))
    # An image smaller than its cells is not made larger.
    size = (min(size[0], width), min(size[1], height))
    shares = [
        cv2.resize((truth == label).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for label in classes
    ]
    found: NDArray[np.uint16] = classes[np.argmax(np.stack(shares), axis=0)]
    return found


def _grow(cells: NDArray[np.uint16], region: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Labels after a region has grown by a cell in four directions; new cells take the label of their neighbour."""
    grown = cells.copy()
    padded, inside = np.pad(cells, 1), np.pad(region, 1)
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        window = np.s_[1 + dy : 1 + dy + cells.shape[0], 1 + dx : 1 + dx + cells.shape[1]]
        entered = inside[window] & ~region
        grown[entered] = padded[window][entered]
    return grown
