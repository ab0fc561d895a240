"""YOLO's segmentation text: one line an object, its class and one polygon in shares of the image."""

from __future__ import annotations

import numpy as np

from saqsam.segmentation.formats.registry import Context, Files
from saqsam.segmentation.objects import SegmentedImage
from saqsam.segmentation.outlines import Ring, outlines


def yolo_text(image: SegmentedImage, *, tolerance: float) -> bytes:
    """Return the objects of an image, one line each: class, then x and y of the corners in [0, 1].

    Classes count from 0, in the order of the category ids. The format has one polygon an object: parts of a mask are
    joined by lines of no width between their nearest corners, and holes are lost. Empty masks have no line.

    Args:
        image: The image.
        tolerance: Of polygons, see `outlines`.

    Raises:
        ValueError: The category of an object is not one of the image's.
    """
    classes = {category: number for number, category in enumerate(sorted(image.categories))}
    height, width = image.size
    lines = []
    for one in image.objects:
        if one.category_id not in classes:
            raise ValueError(
                f"{image.name}: category {one.category_id} of an object is not among the categories of the data, so "
                "it has no class number"
            )
        rings = [part.outer for part in outlines(one.mask(), tolerance)]
        if rings:
            corners = (_joined(rings) / (width, height)).ravel().tolist()
            lines.append(" ".join([str(classes[one.category_id]), *(f"{value:.6f}" for value in corners)]))
    return "".join(f"{line}\n" for line in lines).encode()


def class_names(image: SegmentedImage) -> bytes:
    """Return the names of the classes, one a line, in the order of their numbers."""
    return "".join(f"{name}\n" for _, name in sorted(image.categories.items())).encode()


def _joined(rings: list[Ring]) -> Ring:
    """Return one ring that visits all, going to each from the nearest corner so far and back."""
    joined = rings[0]
    for ring in rings[1:]:
        distances = ((joined[:, None] - ring[None]) ** 2).sum(2)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.roll(ring, -there, axis=0)
        joined = np.concatenate([joined[: here + 1], turned, turned[:1], joined[here:]])
    return joined


def yolo_files(image: SegmentedImage, context: Context) -> Files:
    """Yield the text."""
    yield ".txt", yolo_text(image, tolerance=context.tolerance)
