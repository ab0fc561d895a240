"""Average precision of oriented boxes, as DOTA's development kit matches them, per class and class-agnostic.

Xia et al., "DOTA: A Large-scale Dataset for Object Detection in Aerial Images", CVPR 2018; the matching is that of
PASCAL VOC (Everingham et al., IJCV 2010) on the IoU of polygons. In the order of their scores, each detection of a
class belongs to the object of that class in its image with which its IoU is highest. It is right where that IoU
is *above* the threshold and no earlier detection was right there; neither right nor wrong where the object is marked
difficult; else wrong. (COCO's matching differs: it takes IoUs *at* the threshold, and gives an object that is taken
already to no second detection, but offers it the next best one.)

There are two areas under the curve of precision over recall. The main one takes, at every recall, the best precision
from there on (VOC since 2010). `_07` is the mean of that at the recalls 0, 0.1, ..., 1 (VOC 2007), which the
development kit prints and published DOTA tables hold; it moves in steps, and so hides small changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saqsam.data.polygons import Polygon
from saqsam.evaluation.metrics.coco_ap import AGNOSTIC_SUFFIX
from saqsam.evaluation.metrics.rotated import polygon_ious, shares_inside

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
"""IoUs above which a detection is right: 0.50, 0.55, ..., 0.95."""

_RIGHT, _WRONG, _IGNORED = 1, 0, -1
_STEPS_07 = 10


@dataclass(frozen=True)
class OrientedTruth:
    """Object to find.

    Attributes:
        polygon: Convex, as `convex_hull` gives it.
        category_id: Its class.
        is_difficult: Finding it is neither right nor wrong.
        is_crowd: It stands for many: what lies in it is neither right nor wrong.
    """

    polygon: Polygon
    category_id: int
    is_difficult: bool = False
    is_crowd: bool = False

    @property
    def counts(self) -> bool:
        """Whether missing it lowers recall."""
        return not (self.is_difficult or self.is_crowd)


@dataclass(frozen=True)
class OrientedDetection:
    """Predicted oriented box.

    Attributes:
        polygon: Convex; None for an empty mask, which is a wrong detection.
        category_id: Its class.
        score: Confidence; only the order of scores counts, and equal scores keep the order of the detections.
    """

    polygon: Polygon | None
    category_id: int
    score: float


@dataclass(frozen=True)
class _Image:
    detections: tuple[OrientedDetection, ...]
    truth: tuple[OrientedTruth, ...]
    ious: NDArray[np.float64]
    """[D, T]; with a crowd, the share of the detection that lies in it."""


@dataclass
class RotatedAP:
    """Average precision of oriented boxes, updated image by image."""

    _images: list[_Image] = field(default_factory=list)

    def update(self, detections: Sequence[OrientedDetection], truth: Sequence[OrientedTruth]) -> None:
        """Add the detections and all objects of an image."""
        ious = np.zeros((len(detections), len(truth)))
        rows = [row for row, detection in enumerate(detections) if detection.polygon is not None]
        boxes = [detection.polygon for detection in detections if detection.polygon is not None]
        for crowd, overlap in ((False, polygon_ious), (True, shares_inside)):
            columns = [column for column, one in enumerate(truth) if one.is_crowd == crowd]
            if rows and columns:
                ious[np.ix_(rows, columns)] = overlap(boxes, [truth[column].polygon for column in columns])
        self._images.append(_Image(tuple(detections), tuple(truth), ious))

    def compute(self) -> dict[str, float | None]:
        """Compute the metrics over all images so far.

        Returns:
            `rotated_ap` (mean over `THRESHOLDS`), `rotated_ap50`, `rotated_ap75` and `rotated_ap50_07`, in [0, 1],
            each a mean over the classes that have objects; and each the suffix `_agnostic` with all classes
            merged into one. None where there are no objects.
        """
        by_class = list(self.by_class().values())
        metrics = {name: _mean([one[name] for one in by_class]) for name in _METRICS}
        agnostic = self._metrics(None)
        return metrics | {name + AGNOSTIC_SUFFIX: agnostic.get(name) for name in _METRICS}

    def by_class(self) -> Mapping[int, dict[str, float]]:
        """Compute the metrics of each class that has objects, in the order of class ids."""
        classes = {one.category_id for image in self._images for one in image.truth if one.counts}
        return {category: self._metrics(category) for category in sorted(classes)}

    def _metrics(self, category: int | None) -> dict[str, float]:
        """Compute the metrics of one class, or of all merged into one; empty without objects."""
        objects, scores, verdicts = 0, [np.empty(0)], [np.empty((0, len(THRESHOLDS)), dtype=np.int8)]
        for image in self._images:
            rows = [n for n, one in enumerate(image.detections) if category in (None, one.category_id)]
            columns = [n for n, one in enumerate(image.truth) if category in (None, one.category_id)]
            objects += sum(image.truth[column].counts for column in columns)
            own = np.array([image.detections[row].score for row in rows])
            order = np.argsort(-own, kind="stable")
            scores.append(own[order])
            members = [image.truth[column] for column in columns]
            verdicts.append(_judge(image.ious[np.ix_(rows, columns)][order], members))
        if objects == 0:
            return {}
        order = np.argsort(-np.concatenate(scores), kind="stable")
        judged = np.concatenate(verdicts)[order]
        areas = [average_precision(column, objects) for column in judged.T]
        return {
            "rotated_ap": sum(area for area, _ in areas) / len(areas),
            "rotated_ap50": areas[0][0],
            "rotated_ap75": areas[THRESHOLDS.index(0.75)][0],
            "rotated_ap50_07": areas[0][1],
        }


_METRICS = ("rotated_ap", "rotated_ap50", "rotated_ap75", "rotated_ap50_07")


def _judge(ious: NDArray[np.float64], truth: Sequence[OrientedTruth]) -> NDArray[np.int8]:
    """Return right, wrong or ignored, [D, thresholds], for detections in the order of their scores, [D, T]."""
    verdicts = np.full((len(ious), len(THRESHOLDS)), _WRONG, dtype=np.int8)
    thresholds = np.array(THRESHOLDS)
    single = np.flatnonzero([not one.is_crowd for one in truth])
    if len(single):
        best = single[ious[:, single].argmax(axis=1)]
        taken = np.zeros((len(truth), len(THRESHOLDS)), dtype=bool)
        for row, place in enumerate(best.tolist()):
            above = ious[row, place] > thresholds
            if truth[place].is_difficult:
                verdicts[row, above] = _IGNORED
            else:
                verdicts[row, above & ~taken[place]] = _RIGHT
                taken[place] |= above
    crowds = ious[:, np.flatnonzero([one.is_crowd for one in truth])].max(axis=1, initial=0.0)
    verdicts[(verdicts == _WRONG) & (crowds[:, None] > thresholds)] = _IGNORED
    return verdicts


def average_precision(verdicts: NDArray[np.int8], objects: int) -> tuple[float, float]:
    """Compute the area under precision over recall.

    Args:
        verdicts: [D], 1 for right, 0 for wrong, -1 for neither, in the order of the scores, highest first.
        objects: Number of objects to find, at least 1.

    Returns:
        The area with, at each recall, the best precision from there on; and the mean of that at eleven recalls.
    """
    judged = verdicts[verdicts != _IGNORED]
    if len(judged) == 0:
        return 0.0, 0.0
    right = np.cumsum(judged == _RIGHT)
    precision = right / np.arange(1, len(judged) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    area = float(best[judged == _RIGHT].sum() / objects)
    # In whole numbers: the recall 3/10 is no float.
    reached = [np.flatnonzero(_STEPS_07 * right >= step * objects) for step in range(_STEPS_07 + 1)]
    eleven = sum(float(best[places[0]]) for places in reached if len(places)) / (_STEPS_07 + 1)
    return area, eleven


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
