"""Simulated label maps: ground truth made as coarse and noisy as the output of a semantic model, from a seed."""

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
"""Cells along the longer side of an image: a quarter of SegFormer's output resolution (1/4) at 640 px."""
_WRONG = 0.08
"""Fraction of cells whose label is replaced by another class of the image."""


class SimulatedLabels:
    """Coarse label maps made from the ground truth, equal for equal seeds and images.

    An image is divided into cells, 40 along its longer side, each with the label of most of its pixels. Then each class
    except the most frequent one is grown by a cell, shrunk by a cell or left unchanged, with equal probability, and 8 %
    of the cells get the label of another class in the image. No model is involved: scores with these maps measure the
    masks that refine them, not a semantic model.

    Args:
        seed: Seed of all random numbers, at least 0.
    """

    def __init__(self, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self.seed = seed

    def options(self) -> dict[str, Any]:
        """Return the seed, as `LabelMaps.options`."""
        return {"labels": SIMULATED, "labels_seed": self.seed}

    def find(self, sample: Sample, truth: LabelMap) -> LabelMap | Unusable:
        """Simulate the map of an image, as `LabelMaps.find`."""
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
            # A class at a positive distance from the cell's own, which is certain to be another one.
            places = np.searchsorted(np.sort(classes), cells)
            others = np.sort(classes)[(places + rng.integers(1, len(classes), cells.shape)) % len(classes)]
            cells = np.where(wrong, others, cells)
        labels: LabelMap = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
        return labels


def _majority(truth: LabelMap, classes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the most frequent label of each cell; that of the first class for a cell without labels."""
    height, width = truth.shape
    side = max(height, width) / _CELLS
    size = (max(1, round(width / side)), max(1, round(height / side)))
    # An image with fewer pixels than cells is not enlarged.
    size = (min(size[0], width), min(size[1], height))
    shares = [
        cv2.resize((truth == label).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for label in classes
    ]
    majority: NDArray[np.uint16] = classes[np.argmax(np.stack(shares), axis=0)]
    return majority


def _grow(cells: NDArray[np.uint16], region: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Grow a region by one cell in four directions; new cells take the label of their neighbor."""
    grown = cells.copy()
    padded, inside = np.pad(cells, 1), np.pad(region, 1)
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        window = np.s_[1 + dy : 1 + dy + cells.shape[0], 1 + dx : 1 + dx + cells.shape[1]]
        entered = inside[window] & ~region
        grown[entered] = padded[window][entered]
    return grown
