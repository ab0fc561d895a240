"""Convert COCO annotations to instances: masks, boxes, categories, and the orientation that they were drawn in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle_codec
from numpy.typing import NDArray

from saqsam.data.coco_records import Annotation
from saqsam.data.json_fields import parse_flag, parse_id, parse_xywh, touches, xyxy
from saqsam.data.orientation import TRANSPOSED, read_orientation, undo_orientation
from saqsam.data.segmentations import least_size, read_segmentation
from saqsam.data.types import Instance

EMPTY_MASK = "empty mask"
OTHER_SIZE = "mask of another size than the image"
EMPTY_BOX = "box without area"
DAMAGED_BOX = "damaged box"
OUTSIDE_BOX = "box outside the image"
MISSING_CATEGORY = "missing category id"
DAMAGED_CATEGORY = "category id that is not an integer"
DAMAGED_FLAG = "crowd flag other than 0 or 1"

DERIVED_BOX = "box derived from segmentation"
ONLY_CATEGORY = "missing category id taken as the only category"
UNLISTED_CATEGORY = "category id that the file does not list"
AS_STORED = "image of another size than stated read without its EXIF rotation, which makes it fit"
STATED_AS_STORED = "image of another size than stated, its size being that before EXIF rotation"

Size = tuple[int, int]

_BEYOND = 1.0
"""Pixels by which corners may lie outside an image, because tools count pixels from 0 or 1."""


def read_instance(
    annotation: Annotation,
    size: Size | None,
    categories: Collection[int],
    notes: Counter[str],
) -> Instance | str:
    """Read an annotation.

    Args:
        annotation: The annotation.
        size: (height, width) of the image; None if it has another size than the annotation file states.
        categories: Ids that the file lists; empty if it lists none.
        notes: Counter of irregularities, updated if an instance is returned.

    Returns:
        The instance, or the reason why it is skipped.
    """
    content = annotation.content
    irregularities: Counter[str] = Counter()
    if not content.get("segmentation"):
        return EMPTY_MASK
    if size is None:
        return OTHER_SIZE
    segmentation = read_segmentation(content["segmentation"], size, irregularities)
    if isinstance(segmentation, str):
        return segmentation
    if tuple(segmentation.rle["size"]) != size:
        return OTHER_SIZE
    if rle_codec.area(segmentation.rle) == 0:
        return EMPTY_MASK
    box = read_box(content.get("bbox"), segmentation.rle, size, irregularities)
    if isinstance(box, str):
        return box
    category = read_category(content.get("category_id"), categories, irregularities)
    if isinstance(category, str):
        return category
    is_crowd = parse_flag(content.get("iscrowd"), irregularities)
    if is_crowd is None:
        return DAMAGED_FLAG
    notes.update(irregularities)
    return Instance(annotation.id, segmentation.rle, box, category, is_crowd, segmentation.corners)


def read_box(
    value: Any, rle: dict[str, Any], size: Size, notes: Counter[str]
) -> tuple[float, float, float, float] | str:
    """Read a `bbox` as xyxy, or derive an absent, null or empty one from the mask; or return why it is unusable."""
    if value is None or value == []:
        notes[DERIVED_BOX] += 1
        value = rle_codec.toBbox(rle).tolist()
    xywh = parse_xywh(value, notes)
    if xywh is None:
        return DAMAGED_BOX
    if xywh[2] <= 0 or xywh[3] <= 0:
        return EMPTY_BOX
    box = xyxy(xywh)
    return box if touches(box, size) else OUTSIDE_BOX


def read_category(value: Any, categories: Collection[int], notes: Counter[str]) -> int | str:
    """Read a `category_id`; 1 if the annotation file has no categories, or the reason why it is unusable.

    An id that the file does not list is kept and noted, because masks and boxes do not depend on it.
    """
    if value is None:
        if len(categories) > 1:
            return MISSING_CATEGORY
        if categories:
            notes[ONLY_CATEGORY] += 1
        return next(iter(categories), 1)
    category = parse_id(value, notes)
    if category is None:
        return DAMAGED_CATEGORY
    if categories and category not in categories:
        notes[UNLISTED_CATEGORY] += 1
    return category


def orient(
    image: NDArray[np.uint8],
    path: Path,
    stated: Size | None,
    annotations: Sequence[Annotation],
    notes: Counter[str],
) -> tuple[NDArray[np.uint8], Size | None]:
    """Return an image in the orientation in which it was annotated, and its size if annotations fit it.

    Tools that ignore EXIF rotation state height and width as stored. Annotations are then assumed to be drawn on the
    stored image, unless more of them fit the upright one.

    Args:
        image: HWC, upright.
        path: File of the image.
        stated: (height, width) in the annotation file; None if it states none.
        annotations: Annotations of the image.
        notes: Counter of images whose EXIF rotation matters.

    Returns:
        The image, and its (height, width); None for the size if it is not the stated one.
    """
    height, width = image.shape[:2]
    if stated is None or stated == (height, width):
        return image, (height, width)
    orientation = read_orientation(path)
    if stated != (width, height) or orientation not in TRANSPOSED:
        return image, None
    if _count_fitting(annotations, (height, width)) > _count_fitting(annotations, stated):
        notes[STATED_AS_STORED] += 1
        return image, (height, width)
    notes[AS_STORED] += 1
    return undo_orientation(image, orientation), stated


def _count_fitting(annotations: Sequence[Annotation], size: Size) -> int:
    """Count the masks that lie within an image of `size`; run lengths must have that size."""
    return sum(_fits(annotation.content.get("segmentation"), size) for annotation in annotations)


def _fits(segmentation: Any, size: Size) -> bool:
    needed = least_size(segmentation)
    if needed is None:
        return False
    if isinstance(segmentation, dict):
        return needed == size
    return needed[0] <= size[0] + _BEYOND and needed[1] <= size[1] + _BEYOND
