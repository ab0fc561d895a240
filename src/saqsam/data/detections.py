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

from saqsam.data.coco import CocoDataset
from saqsam.data.coco_instances import DERIVED_BOX, EMPTY_BOX, OUTSIDE_BOX
from saqsam.data.coco_records import UNKNOWN_IMAGE
from saqsam.data.dota import DotaDataset
from saqsam.data.json_fields import parse_id, parse_numbers, parse_xywh, read_json, touches, xyxy
from saqsam.data.paths import expand_home
from saqsam.data.segmentations import read_outer_box
from saqsam.data.types import Dataset, Sample
from saqsam.utils.counts import left_out_phrase
from saqsam.utils.errors import shorten

UNKNOWN_CATEGORY = "unknown category id"
WRAPPED = "list of detections read from a field of an object"
_WRAPPERS = ("annotations", "detections", "predictions", "results")
"""Fields that tools write the list of detections into."""


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

    @property
    def notes(self) -> Mapping[str, int]:
        """How often something unusual in its file was accepted, by what it was."""
        ...


@dataclass(frozen=True)
class Detections:
    """A detector's boxes for a data set.

    Attributes:
        by_image: Detections of each image that has any, by image id.
        skipped: How many entries were left out, by reason.
        notes: How often something unusual in the file was accepted, by what it was.
    """

    by_image: dict[int, ImageDetections]
    skipped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

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
        return Detections(kept, dict(self.skipped), dict(self.notes))

    def digest(self) -> str:
        """12 hexadecimal digits that tell these detections from others."""
        digest = hashlib.sha256()
        for image_id in sorted(self.by_image):
            found = self.by_image[image_id]
            digest.update(str(image_id).encode())
            for part in (found.boxes, found.scores, found.category_ids):
                digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class _Entry:
    """A detection with its values checked; the box is xyxy."""

    image_id: int
    category_id: int
    box: tuple[float, float, float, float]
    score: float


def load_detections(path: str | Path, dataset: Dataset) -> Detections:
    """Read a COCO results file, the boxes that any detector found in the images of `dataset`.

    Entries of images or categories that the annotation file does not list, and those with boxes without area
    or outside their image, are left out and counted. Entries of listed images beyond the data set's limit are
    passed over. Numbers written as text, ids written as floats, boxes that follow from a `segmentation`, and a list
    within an object (`{"annotations": [...]}`) are accepted and noted.

    Args:
        path: JSON list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
        dataset: The `CocoDataset` or `DotaDataset` that the image ids belong to.

    Raises:
        ValueError: `dataset` is neither, the file is missing or no such list, an entry has ids that are no
            integers, a box that is not finite, or a score outside [0, 1], or all entries are left out.
    """
    if not isinstance(dataset, CocoDataset | DotaDataset):
        raise ValueError(f"detections: expected a data set in COCO format or DOTA's, got {dataset.name!r}")
    path = expand_home(path)
    notes: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    entries = _unwrap(read_json(path, notes), path, notes)
    kept_images = set(dataset.image_ids)
    kept: dict[int, list[_Entry]] = {}
    for position, content in enumerate(entries):
        where = f"{path}: entry {position}"
        image_id, category_id, score = _read_numbers(content, where, notes)
        if not dataset.has_image(image_id):
            skipped[UNKNOWN_IMAGE] += 1
            continue
        if image_id not in kept_images:
            continue
        size = dataset.image_size(image_id)
        x0, y0, x1, y1 = box = _read_box(content, size, where, notes)
        if dataset.category_names and category_id not in dataset.category_names:
            skipped[UNKNOWN_CATEGORY] += 1
        elif x1 <= x0 or y1 <= y0:
            skipped[EMPTY_BOX] += 1
        elif not touches(box, size):
            skipped[OUTSIDE_BOX] += 1
        else:
            kept.setdefault(image_id, []).append(_Entry(image_id, category_id, box, score))
    if entries and skipped.total() == len(entries):
        raise ValueError(
            f"{path}: expected boxes for the images of {dataset.name!r}, found none that can be used among "
            f"{len(entries)}{left_out_phrase(skipped)}"
        )
    return Detections(
        {image_id: _stack(found) for image_id, found in kept.items()}, dict(skipped), dict(notes)
    )


def _unwrap(content: Any, path: Path, notes: Counter[str]) -> list[Any]:
    """Return the list of detections, which may be a field of an object."""
    if isinstance(content, list):
        return content
    fields = [name for name in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(name), list)]
    if len(fields) == 1 and "images" not in content:
        notes[WRAPPED] += 1
        found: list[Any] = content[fields[0]]
        return found
    problem = f"got {type(content).__name__}"
    if isinstance(content, dict) and "images" in content:
        problem += " with 'images', which is the form of an annotation file"
    raise ValueError(f"{path}: expected COCO results, a JSON list, {problem}")


def _read_numbers(entry: Any, where: str, notes: Counter[str]) -> tuple[int, int, float]:
    """Return image id, category id and score."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {type(entry).__name__}")
    ids = []
    for key in ("image_id", "category_id"):
        number = parse_id(entry.get(key), notes)
        if number is None:
            raise ValueError(f"{where}: expected an integer {key}, got {shorten(entry.get(key))}")
        ids.append(number)
    # Scores are multiplied with predicted IoUs: those on another scale, logits say, would turn the order around.
    score = parse_numbers([entry.get("score")], notes)
    if score is None or not 0 <= score[0] <= 1:
        raise ValueError(f"{where}: expected a score in [0, 1], got {shorten(entry.get('score'))}")
    return ids[0], ids[1], score[0]


def _read_box(
    entry: dict[str, Any], size: tuple[int, int], where: str, notes: Counter[str]
) -> tuple[float, float, float, float]:
    """Return the box as xyxy; an absent, null or empty one follows from the entry's segmentation."""
    value = entry.get("bbox")
    if value in (None, []) and entry.get("segmentation"):
        box = read_outer_box(entry["segmentation"], size, notes)
        if isinstance(box, str):
            raise ValueError(f"{where}: expected bbox or a segmentation that it follows from, got a {box}")
        notes[DERIVED_BOX] += 1
        return box
    xywh = parse_xywh(value, notes)
    if xywh is None:
        raise ValueError(f"{where}: expected bbox as four finite numbers, got {shorten(value)}")
    return xyxy(xywh)


def _stack(entries: Sequence[_Entry]) -> ImageDetections:
    return ImageDetections(
        boxes=np.array([entry.box for entry in entries], dtype=np.float64),
        scores=np.array([entry.score for entry in entries], dtype=np.float64),
        category_ids=np.array([entry.category_id for entry in entries], dtype=np.int64),
    )
