"""Pictures: label maps and masks as PNG, and the masks drawn over the image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from saqsam.segmentation.formats.registry import Context, Files
from saqsam.segmentation.objects import SegmentedImage, SegmentedObject
from saqsam.utils.atomic_write import png_bytes
from saqsam.viz.overlays import PALETTE, draw_mask

MAX_LABELS = 2**16 - 1


def label_map_png(image: SegmentedImage) -> bytes:
    """Return a picture whose pixels are the number of their object, from 1, and 0 elsewhere.

    Smaller objects lie on top. The picture has 8 bits for up to 255 objects, and 16 bits beyond.

    Raises:
        ValueError: There are more objects than 16 bits count.
    """
    if len(image.objects) > MAX_LABELS:
        raise ValueError(
            f"{image.name}: a label map has at most {MAX_LABELS:,} objects, got {len(image.objects):,}"
        )
    labels = np.zeros(image.size, np.uint8 if len(image.objects) < 256 else np.uint16)
    for number, one in _large_first(image):
        labels[one.mask()] = number
    return png_bytes(labels)


def mask_pngs(image: SegmentedImage) -> Iterator[tuple[str, bytes]]:
    """Yield a picture for each object, 255 on the mask and 0 elsewhere, named by its number."""
    for number, one in enumerate(image.objects, 1):
        yield f"{number:04}.png", png_bytes(one.mask().astype(np.uint8) * np.uint8(255))


def overlay_png(image: SegmentedImage, picture: NDArray[np.uint8]) -> bytes:
    """Return the picture of the image, HWC uint8 RGB, with its masks drawn over it, smaller ones on top."""
    canvas = picture.copy()
    for number, one in _large_first(image):
        draw_mask(canvas, one.mask(), PALETTE[(number - 1) % len(PALETTE)])
    return png_bytes(canvas)


def overlay_files(image: SegmentedImage, context: Context) -> Files:
    """Yield the overlay."""
    yield ".png", overlay_png(image, context.picture)


def label_files(image: SegmentedImage, _: Context) -> Files:
    """Yield the label map."""
    yield ".png", label_map_png(image)


def mask_files(image: SegmentedImage, _: Context) -> Files:
    """Yield a picture for each object, in a folder."""
    yield from ((f"/{name}", content) for name, content in mask_pngs(image))


def _large_first(image: SegmentedImage) -> list[tuple[int, SegmentedObject]]:
    """Return the objects with their numbers, from 1, the largest first."""
    return sorted(enumerate(image.objects, 1), key=lambda numbered: -numbered[1].area)
