"""A detector that is made of the truth and a seed: boxes that are a little off, false ones among them, with scores.

For data that no detector's boxes are at hand for. How good its boxes are is invented; what differs between two models
that are given the same ones is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saqsam.data.detections import ImageDetections
from saqsam.data.types import Sample

_TRUE_SCORE, _FALSE_SCORE = (5.0, 3.0), (3.0, 5.0)
"""Of beta distributions: means of 0.62 and 0.38, deviations of 0.16. One false box in seven outranks a true one."""
_LEAST_SIDE = 1.0
_PLACES = 20
_MOST_OVERLAP = 0.3


@dataclass(frozen=True)
class SimulatedDetections:
    """Boxes of the objects with jitter, and false ones.

    Each object but crowds gives a box of its class, whose four edges are moved independently by a normal deviate of
    `jitter` times the side along which they move, cut at the image's border; one that became thinner than 1 px
    keeps the edges of the object. False boxes have the sides of a random object's box, each times a factor of up to two
    up or down, and its class, at a random place: the first of 20 where the IoU with every object's box is below 0.3, or
    the one where it is least. Scores are drawn from Beta(5, 3) for true boxes and Beta(3, 5) for false ones. The order
    of boxes is random. Each image has a random stream of its own, so its boxes do not depend on which other images are
    looked at; images without objects have none.

    Args:
        jitter: Standard deviation of an edge, as a share of the side.
        false_share: How many false boxes to one true box; the fraction that is left over is drawn.
        seed: Of all that is random.

    Raises:
        ValueError: A negative argument, or jitter or share that is not finite.
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
        """See `DetectionSource.skipped`: nothing is left out."""
        return {}

    @property
    def notes(self) -> Mapping[str, int]:
        """See `DetectionSource.notes`: there is no file."""
        return {}

    def digest(self) -> str:
        """See `DetectionSource.digest`."""
        return f"simulated (seed {self.seed}, jitter {self.jitter:g}, false {self.false_share:g})"

    def of(self, sample: Sample) -> ImageDetections | None:
        """See `DetectionSource.of`."""
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
    """A box [4] of about the sides of `model`, away from all of `truth` [T, 4] where there is room."""
    sides = (model[2:] - model[:2]) * 2 ** rng.uniform(-1, 1, 2)
    sides = np.clip(sides, np.minimum(_LEAST_SIDE, limits[:2]), limits[:2])
    corners = rng.random((_PLACES, 2)) * (limits[:2] - sides)
    places = np.concatenate([corners, corners + sides], axis=1)
    overlaps = np.array([_box_ious(place, truth).max() for place in places])
    free = np.flatnonzero(overlaps < _MOST_OVERLAP)
    chosen: NDArray[np.float64] = places[free[0] if len(free) else overlaps.argmin()]
    return chosen


def _box_ious(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of a box [4] with each of [T, 4]: [T]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    ious: NDArray[np.float64] = shared / (np.prod(box[2:] - box[:2]) + areas - shared)
    return ious
