"""labelme JSON: polygons that labelme, X-AnyLabeling and others open beside the image."""

from __future__ import annotations

import json
from typing import Any

from saqsam.segmentation.formats.registry import Context, Files
from saqsam.segmentation.objects import SegmentedImage
from saqsam.segmentation.outlines import outlines

VERSION = "5.5.0"
"""Version of labelme whose form the files have."""


def labelme_json(image: SegmentedImage, image_path: str, *, tolerance: float) -> bytes:
    """Return the annotations of an image.

    Each part of a mask is a polygon, and those of one object share a `group_id`. Holes are lost, since labelme's
    polygons have none.

    Args:
        image: The image.
        image_path: Its path relative to the file.
        tolerance: Of polygons, see `outlines`.
    """
    shapes: list[dict[str, Any]] = []
    for number, one in enumerate(image.objects, 1):
        parts = outlines(one.mask(), tolerance)
        shapes += [
            {
                "label": image.category(one),
                "points": part.outer.tolist(),
                "group_id": number if len(parts) > 1 else None,
                "description": f"predicted IoU {one.predicted_iou:.3f}",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for part in parts
        ]
    document: dict[str, Any] = {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": image.size[0],
        "imageWidth": image.size[1],
    }
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def labelme_files(image: SegmentedImage, context: Context) -> Files:
    """Yield the annotations."""
    yield ".json", labelme_json(image, context.image_path, tolerance=context.tolerance)
