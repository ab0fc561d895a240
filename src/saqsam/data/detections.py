"""Boxes of a detector as prompts, read from COCO results files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
from saqsam.utils.counts import skipped_phrase
from saqsam.utils.errors import shorten

UNKNOWN_CATEGORY = "unknown category id"
WRAPPED = "list of detections read from a field of an object"
_WRAPPERS = ("annotations", "detections", "predictions", "results")
"""Names of the field in which tools wrap the list of detections."""


@dataclass(frozen=True)
class ImageDetections:
    """Boxes of a detector in one image, which are its box prompts.

    Attributes:
        boxes: [D, 4] float64 xyxy in original-image pixels.
        scores: [D] float64, confidence of the detector in [0, 1].
        category_ids: [D] int64.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    category_ids: NDArray[np.int64]

    @classmethod
    def none(cls) -> ImageDetections:
        """Return the detections of an image without any box."""
        return cls(np.empty((0, 4)), np.empty(0), np.empty(0, dtype=np.int64))

    def best(self, count: int) -> ImageDetections:
        """Keep the `count` detections with the highest scores, in their original order."""
        chosen = np.sort(np.argsort(-self.scores, kind="stable")[:count])
        return ImageDetections(self.boxes[chosen], self.scores[chosen], self.category_ids[chosen])


class DetectionSource(Protocol):
    """A source of detections for images."""

    def of(self, sample: Sample) -> ImageDetections | None:
        """Return the detections in an image; None if there are none."""
        ...

    @property
    def digest(self) -> str:
        """Text that identifies these detections."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of skipped boxes, by reason."""
        ...

    @property
    def notes(self) -> Mapping[str, int]:
        """Number of accepted irregularities in the file, by kind."""
        ...


@dataclass(frozen=True)
class Detections:
    """The boxes of a detector for a dataset.

    Attributes:
        by_image: Detections of each image that has any, by image id.
        skipped: Number of skipped entries, by reason.
        notes: Number of accepted irregularities in the file, by kind.
    """

    by_image: dict[int, ImageDetections]
    skipped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def of(self, sample: Sample) -> ImageDetections | None:
        """Return the detections in an image; None if there are none."""
        return self.by_image.get(sample.image_id)

    def best(self, count: int) -> Detections:
        """Keep the `count` detections with the highest scores in each image, in their original order."""
        kept = {image_id: detections.best(count) for image_id, detections in self.by_image.items()}
        return Detections(kept, dict(self.skipped), dict(self.notes))

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal digits of a hash of all boxes, scores and categories."""
        digest = hashlib.sha256()
        for image_id in sorted(self.by_image):
            detections = self.by_image[image_id]
            digest.update(str(image_id).encode())
            for part in (detections.boxes, detections.scores, detections.category_ids):
                digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class _Entry:
    """A detection with checked values; the box is xyxy."""

    image_id: int
    category_id: int
    box: tuple[float, float, float, float]
    score: float


def load_detections(path: str | Path, dataset: Dataset) -> Detections:
    """Read a COCO results file with the boxes of any detector for the images of `dataset`.

    Entries of images or categories that the annotation file does not list, and boxes without area or outside their
    image, are skipped and counted. Entries of listed images beyond the dataset's limit are ignored. Numbers written as
    text, ids written as floats, boxes derived from a `segmentation`, and a list within an object
    (`{"annotations": [...]}`) are accepted and noted.

    Args:
        path: JSON list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
        dataset: The `CocoDataset` or `DotaDataset` that the image ids belong to.

    Raises:
        ValueError: `dataset` is neither, the file is missing or not such a list, an entry has an id that is not an
            integer, a box that is not finite or a score outside [0, 1], or all entries are skipped.
    """
    if not isinstance(dataset, CocoDataset | DotaDataset):
        raise ValueError(f"detections: expected a dataset in COCO format or DOTA's, got {dataset.name!r}")
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
            f"{len(entries)}{skipped_phrase(skipped)}"
        )
    return Detections(
        {image_id: _stack(entries) for image_id, entries in kept.items()}, dict(skipped), dict(notes)
    )


def _unwrap(content: Any, path: Path, notes: Counter[str]) -> list[Any]:
    """Return the list of detections, which may be a field of an object."""
    if isinstance(content, list):
        return content
    fields = [name for name in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(name), list)]
    if len(fields) == 1 and "images" not in content:
        notes[WRAPPED] += 1
        wrapped: list[Any] = content[fields[0]]
        return wrapped
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
    # Scores are multiplied by predicted IoUs, so that another scale, such as logits, would change the ranking.
    score = parse_numbers([entry.get("score")], notes)
    if score is None or not 0 <= score[0] <= 1:
        raise ValueError(f"{where}: expected a score in [0, 1], got {shorten(entry.get('score'))}")
    return ids[0], ids[1], score[0]


def _read_box(
    entry: dict[str, Any], size: tuple[int, int], where: str, notes: Counter[str]
) -> tuple[float, float, float, float]:
    """Return the box as xyxy; an absent, null or empty one is derived from the entry's segmentation."""
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
