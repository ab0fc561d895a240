"""COCO JSON: all images and masks in one file that `pycocotools` loads, as run lengths or polygons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from saqsam.data.rle import rle_text
from saqsam.segmentation.objects import NO_CATEGORIES, SegmentedImage, SegmentedObject
from saqsam.segmentation.outlines import outlines

_DIGITS = 6
"""Decimals of scores."""


def coco_document(images: Sequence[SegmentedImage], *, polygons: bool, tolerance: float) -> bytes:
    """Return an annotation file as `coco_pieces` yields it."""
    pieces = coco_pieces(lambda: images, lambda: images, polygons=polygons, tolerance=tolerance)
    return "".join(pieces).encode()


def coco_pieces(
    images: Callable[[], Iterable[SegmentedImage]],
    masks: Callable[[], Iterable[SegmentedImage]],
    *,
    polygons: bool,
    tolerance: float,
) -> Iterator[str]:
    """Yield an annotation file piece by piece, so that any number of images needs the memory of one.

    Each annotation has the fields of COCO, and `score`, `predicted_iou`, `stability_score` and `prompt`. `score` is the
    predicted IoU, times the confidence of the detector where there was one, so that `COCO.loadRes` takes the list of
    annotations as results.

    Args:
        images: Yields the images; their objects are not read.
        masks: Yields the images with their objects.
        polygons: Write polygons instead of run lengths. Holes are lost, since COCO's polygons have none.
        tolerance: Of polygons, see `outlines`.
    """
    categories: dict[int, str] = {}
    yield '{"info":{"description":"Masks predicted by saqsam"},"images":['
    for number, image in enumerate(images()):
        categories |= image.categories
        height, width = image.size
        entry = {"id": image.image_id, "file_name": image.name, "height": height, "width": width}
        yield _json(entry, is_first=not number)
    yield '],"annotations":['
    count = 0
    for image in masks():
        for one in image.objects:
            form = _polygons(one, tolerance) if polygons else _run_lengths(one)
            count += 1
            entry = {"id": count, "image_id": image.image_id, **_fields(one), **form}
            yield _json(entry, is_first=count == 1)
    yield '],"categories":['
    for number, (category, name) in enumerate(sorted((categories or NO_CATEGORIES).items())):
        yield _json({"id": category, "name": name}, is_first=not number)
    yield "]}\n"


def _json(entry: Mapping[str, Any], *, is_first: bool) -> str:
    """Return an element of a list, behind a comma unless it is the first."""
    text = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
    return text if is_first else f",{text}"


def _fields(one: SegmentedObject) -> dict[str, Any]:
    x0, y0, x1, y1 = one.box
    return {
        "category_id": one.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": one.area,
        "iscrowd": 0,
        "score": round(one.predicted_iou * (1.0 if one.score is None else one.score), _DIGITS),
        "predicted_iou": round(one.predicted_iou, _DIGITS),
        "stability_score": round(one.stability_score, _DIGITS),
        "prompt": one.prompt,
    }


def _run_lengths(one: SegmentedObject) -> dict[str, Any]:
    return {"segmentation": {"size": list(one.rle["size"]), "counts": rle_text(one.rle)}}


def _polygons(one: SegmentedObject, tolerance: float) -> dict[str, Any]:
    return {"segmentation": [part.outer.ravel().tolist() for part in outlines(one.mask(), tolerance)]}
