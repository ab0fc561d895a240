"""A simulated detector: jittered ground-truth boxes and false boxes, with scores, from a seed.

It serves datasets without the boxes of a real detector. The quality of the boxes is invented, but two models that get
the same boxes can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saqsam.data.boxes import box_ious
from saqsam.data.detections import ImageDetections
from saqsam.data.types import Sample

_TRUE_SCORE, _FALSE_SCORE = (5.0, 3.0), (3.0, 5.0)
"""Beta distributions with means of 0.62 and 0.38 and deviations of 0.16: a false box outranks a true one in 1 of 7."""
_LEAST_SIDE = 1.0
_PLACES = 20
_MOST_OVERLAP = 0.3


@dataclass(frozen=True)
class SimulatedDetections:
    """Jittered boxes of the objects, and false boxes.

    Each object except crowds gives a box of its class. Its four edges are moved independently by a normal deviate of
    `jitter` times the side along which they move, and clipped to the image; a box thinner than 1 px keeps the edges of
    the object. A false box has the class and the sides of a random object's box, each side scaled by a factor between
    1/2 and 2. Its place is the first of 20 random ones where the IoU with every object's box is below 0.3, or else the
    one with the lowest IoU. Scores are drawn from Beta(5, 3) for true boxes and Beta(3, 5) for false ones. The order of
    boxes is random. Each image has its own random stream, so its boxes do not depend on other images; images without
    objects have no boxes.

    Args:
        jitter: Standard deviation of an edge, as a fraction of the side.
        false_share: Number of false boxes per true box; a fractional rest is rounded at random.
        seed: Seed of all random numbers.

    Raises:
        ValueError: An argument is negative, or jitter or share is not finite.
    """

    jitter: float = 0.05
    false_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("jitter", self.jitter), ("false_share", self.false_share), ("seed", self.seed)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")

    @property
    def skipped(self) -> Mapping[str, int]:
        """Empty: no box is skipped."""
        return {}

    @property
    def notes(self) -> Mapping[str, int]:
        """Empty: there is no file."""
        return {}

    @property
    def digest(self) -> str:
        """Seed and parameters, which identify the boxes."""
        return f"simulated (seed {self.seed}, jitter {self.jitter:g}, false {self.false_share:g})"

    def of(self, sample: Sample) -> ImageDetections | None:
        """Return the boxes of an image; None if it has no objects."""
        targets = [instance for instance in sample.instances if not instance.is_crowd]
        if not targets:
            return None
        rng = self._rng(sample.image_id)
        height, width, _ = sample.image.shape
        limits = np.array([width, height, width, height], dtype=np.float64)
        truth = np.clip([target.box for target in targets], 0, limits)
        categories = np.array([target.category_id for target in targets], dtype=np.int64)
        moved = self._move(rng, truth, limits)
        count = int(len(truth) * self.false_share + rng.random())
        models = rng.integers(len(truth), size=count)
        false = np.array([_false_box(rng, truth[model], truth, limits) for model in models]).reshape(-1, 4)
        scores = np.concatenate([rng.beta(*_TRUE_SCORE, len(moved)), rng.beta(*_FALSE_SCORE, count)])
        order = rng.permutation(len(scores))
        return ImageDetections(
            boxes=np.concatenate([moved, false])[order],
            scores=scores[order],
            category_ids=np.concatenate([categories, categories[models]])[order],
        )

    def _rng(self, image_id: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed} {image_id}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))

    def _move(
        self, rng: np.random.Generator, boxes: NDArray[np.float64], limits: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        moved = np.clip(boxes + self.jitter * sides * rng.standard_normal(boxes.shape), 0, limits)
        is_thin = np.any(moved[:, 2:] - moved[:, :2] < _LEAST_SIDE, axis=1, keepdims=True)
        return np.where(is_thin, boxes, moved)


def _false_box(
    rng: np.random.Generator,
    model: NDArray[np.float64],
    truth: NDArray[np.float64],
    limits: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Draw a box [4] of about the size of `model`, away from all boxes of `truth` [T, 4] if there is room."""
    sides = (model[2:] - model[:2]) * 2 ** rng.uniform(-1, 1, 2)
    sides = np.clip(sides, np.minimum(_LEAST_SIDE, limits[:2]), limits[:2])
    corners = rng.random((_PLACES, 2)) * (limits[:2] - sides)
    places = np.concatenate([corners, corners + sides], axis=1)
    overlaps = np.array([box_ious(place, truth).max() for place in places])
    free = np.flatnonzero(overlaps < _MOST_OVERLAP)
    chosen: NDArray[np.float64] = places[free[0] if len(free) else overlaps.argmin()]
    return chosen
