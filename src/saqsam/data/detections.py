"""What a detector found, as box prompts: COCO results files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from saqsam.data.coco import EMPTY_BOX, OUTSIDE_BOX, UNKNOWN_IMAGE, CocoDataset
from saqsam.data.datasets import Dataset, Sample
from saqsam.data.dota import DotaDataset
from saqsam.data.json_fields import is_finite, is_int, is_xywh, read_json, touches, xyxy
from saqsam.data.paths import expand_home

UNKNOWN_CATEGORY = "unknown category id"


@dataclass(frozen=True)
class ImageDetections:
    """What a detector found in one image: the box prompts of it.

    Attributes:
        boxes: [D, 4] float64 xyxy in original-image pixels.
        scores: [D] float64, the detector's confidences.
        category_ids: [D] int64.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    category_ids: NDArray[np.int64]

    @classmethod
    def none(cls) -> ImageDetections:
        """Of an image in which nothing was found."""
        return cls(np.empty((0, 4)), np.empty(0), np.empty(0, dtype=np.int64))


class DetectionSource(Protocol):
    """A detector, as tasks ask it."""

    def of(self, sample: Sample) -> ImageDetections | None:
        """What it found in an image; None for nothing."""
        ...

    def digest(self) -> str:
        """What tells its boxes from those of others."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many of its boxes were left out, by reason."""
        ...


@dataclass(frozen=True)
class Detections:
    """A detector's boxes for a data set.

    Attributes:
        by_image: Detections of each image that has any, by image id.
        skipped: How many entries were left out, by reason.
    """

    by_image: dict[int, ImageDetections]
    skipped: dict[str, int] = field(default_factory=dict)

    def of(self, sample: Sample) -> ImageDetections | None:
        """See `DetectionSource.of`."""
        return self.by_image.get(sample.image_id)

    def best(self, count: int) -> Detections:
        """Of each image the `count` detections of the highest scores, in the order that they were in."""
        kept = {}
        for image_id, found in self.by_image.items():
            chosen = np.sort(np.argsort(-found.scores, kind="stable")[:count])
            kept[image_id] = ImageDetections(
                found.boxes[chosen], found.scores[chosen], found.category_ids[chosen]
            )
        return Detections(kept, dict(self.skipped))

    def digest(self) -> str:
        """12 hexadecimal digits that tell these detections from others."""
        digest = hashlib.sha256()
        for image_id in sorted(self.by_image):
            found = self.by_image[image_id]
            digest.update(str(image_id).encode())
            for part in (found.boxes, found.scores, found.category_ids):
                digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:12]


def load_detections(path: str | Path, dataset: Dataset) -> Detections:
    """Read a COCO results file, the boxes that any detector found in the images of `dataset`.

    Entries of images or categories that the annotation file does not list, and those with boxes without area
    or outside their image, are left out and counted. Entries of listed images beyond the data set's limit are
    passed over.

    Args:
        path: JSON list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
        dataset: The `CocoDataset` or `DotaDataset` that the image ids belong to.

    Raises:
        ValueError: `dataset` is neither, the file is missing or no such list, or an entry has ids that are no
            integers, a box that is not finite, or a score outside [0, 1].
    """
    if not isinstance(dataset, CocoDataset | DotaDataset):
        raise ValueError(f"detections: expected a data set in COCO format or DOTA's, got {dataset.name!r}")
    path = expand_home(path)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected COCO results, a JSON list, got {type(entries).__name__}")
    kept_images = set(dataset.image_ids)
    kept: dict[int, list[dict[str, Any]]] = {}
    skipped: Counter[str] = Counter()
    for position, entry in enumerate(entries):
        _check_detection(entry, f"{path}: entry {position}")
        if not dataset.has_image(entry["image_id"]):
            skipped[UNKNOWN_IMAGE] += 1
        elif dataset.category_names and entry["category_id"] not in dataset.category_names:
            skipped[UNKNOWN_CATEGORY] += 1
        elif entry["bbox"][2] <= 0 or entry["bbox"][3] <= 0:
            skipped[EMPTY_BOX] += 1
        elif not touches(xyxy(entry["bbox"]), dataset.image_size(entry["image_id"])):
            skipped[OUTSIDE_BOX] += 1
        elif entry["image_id"] in kept_images:
            kept.setdefault(entry["image_id"], []).append(entry)
    return Detections({image_id: _stack(found) for image_id, found in kept.items()}, dict(skipped))


def _check_detection(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {type(entry).__name__}")
    for key in ("image_id", "category_id"):
        if not is_int(entry.get(key)):
            raise ValueError(f"{where}: expected an integer {key}, got {entry.get(key)!r}")
    if not is_xywh(entry.get("bbox")):
        raise ValueError(f"{where}: expected bbox as four finite numbers, got {entry.get('bbox')!r}")
    # Scores are multiplied with predicted IoUs: those on another scale, logits say, would turn the order around.
    if not is_finite(entry.get("score")) or not 0 <= entry["score"] <= 1:
        raise ValueError(f"{where}: expected a score in [0, 1], got {entry.get('score')!r}")


def _stack(entries: Sequence[dict[str, Any]]) -> ImageDetections:
    return ImageDetections(
        boxes=np.array([xyxy(entry["bbox"]) for entry in entries], dtype=np.float64),
        scores=np.array([entry["score"] for entry in entries], dtype=np.float64),
        category_ids=np.array([entry["category_id"] for entry in entries], dtype=np.int64),
    )
