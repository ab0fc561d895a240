"""COCO JSON: all images and masks in one file that `pycocotools` loads, as run lengths or polygons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from saqsam.data.rle import rle_text
from saqsam.segmentation.objects import NO_CATEGORIES, SegmentedImage, SegmentedObject
from saqsam.segmentation.outlines import outlines

_DIGITS = 6
"""Decimals of scores."""


def coco_document(images: Sequence[SegmentedImage], *, polygons: bool, tolerance: float) -> bytes:
    """Return an annotation file.

    Each annotation has the fields of COCO, and `score`, `predicted_iou`, `stability_score` and `prompt`. `score` is the
    predicted IoU, times the confidence of the detector where there was one, so that `COCO.loadRes` takes the list of
    annotations as results.

    Args:
        images: The images.
        polygons: Write polygons instead of run lengths. Holes are lost, since COCO's polygons have none.
        tolerance: Of polygons, see `outlines`.
    """
    categories = {number: name for image in images for number, name in image.categories.items()}
    annotations: list[dict[str, Any]] = []
    for image in images:
        for one in image.objects:
            form = _polygons(one, tolerance) if polygons else _run_lengths(one)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image.image_id, **_fields(one), **form}
            )
    document = {
        "info": {"description": "Masks predicted by saqsam"},
        "images": [
            {"id": image.image_id, "file_name": image.name, "height": image.size[0], "width": image.size[1]}
            for image in images
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name} for number, name in sorted((categories or NO_CATEGORIES).items())
        ],
    }
    return (json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


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
