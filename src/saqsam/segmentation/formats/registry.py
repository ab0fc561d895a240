"""The formats of masks, by name and by the suffix of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saqsam.segmentation.objects import SegmentedImage


@dataclass(frozen=True)
class Context:
    """What the files of an image depend on besides its masks.

    Attributes:
        read: Reads the image, HWC uint8 RGB.
        image_path: Path of the image relative to the file.
        tolerance: Of polygons in pixels, see `outlines`.
    """

    read: Callable[[], NDArray[np.uint8]]
    image_path: str
    tolerance: float


Files = Iterator[tuple[str, bytes]]
"""Names of files, relative to that of the image without its suffix, and their contents."""


@dataclass(frozen=True)
class MaskFormat:
    """A format of masks.

    Attributes:
        name: Its name.
        description: What it is, for help texts.
        suffix: Suffix of its files.
        files: Makes the files of an image; None for a format with one file for all images.
        is_folder: Whether an image has several files.
    """

    name: str
    description: str
    suffix: str
    files: Callable[[SegmentedImage, Context], Files] | None
    is_folder: bool = False


def _overlay(image: SegmentedImage, context: Context) -> Files:
    from saqsam.segmentation.formats.pictures import overlay_png

    yield ".png", overlay_png(image, context.read)


def _labels(image: SegmentedImage, _: Context) -> Files:
    from saqsam.segmentation.formats.pictures import label_map_png

    yield ".png", label_map_png(image)


def _masks(image: SegmentedImage, _: Context) -> Files:
    from saqsam.segmentation.formats.pictures import mask_pngs

    yield from ((f"/{name}", content) for name, content in mask_pngs(image))


def _npz(image: SegmentedImage, _: Context) -> Files:
    from saqsam.segmentation.formats.arrays import npz_bytes

    yield ".npz", npz_bytes(image)


def _labelme(image: SegmentedImage, context: Context) -> Files:
    from saqsam.segmentation.formats.labelme import labelme_json

    yield ".json", labelme_json(image, context.image_path, tolerance=context.tolerance)


def _yolo(image: SegmentedImage, context: Context) -> Files:
    from saqsam.segmentation.formats.yolo import yolo_text

    yield ".txt", yolo_text(image, tolerance=context.tolerance)


def _geojson(image: SegmentedImage, context: Context) -> Files:
    from saqsam.segmentation.formats.geojson import geojson

    yield ".geojson", geojson(image, tolerance=context.tolerance)


MASKS = ".masks"
"""What the name of an image's masks has after that of the image, by default."""
OVERLAY = "overlay"
COCO, COCO_POLYGONS = "coco", "coco-polygons"
YOLO = "yolo"

FORMATS: Mapping[str, MaskFormat] = {
    entry.name: entry
    for entry in (
        MaskFormat(OVERLAY, "the image with its masks drawn over it", ".png", _overlay),
        MaskFormat(COCO, "COCO JSON of all images, run lengths", ".json", None),
        MaskFormat(COCO_POLYGONS, "the same with polygons", ".json", None),
        MaskFormat("labels", "a PNG whose pixels are the number of their object", ".png", _labels),
        MaskFormat("masks", "a PNG for each mask", ".png", _masks, is_folder=True),
        MaskFormat("npz", "NumPy arrays", ".npz", _npz),
        MaskFormat("labelme", "labelme's polygons", ".json", _labelme),
        MaskFormat(YOLO, "YOLO's segmentation text", ".txt", _yolo),
        MaskFormat("geojson", "GeoJSON, in degrees for a georeferenced TIFF", ".geojson", _geojson),
    )
}


def output_path(form: MaskFormat, out: Path | None, image: Path | None) -> Path | None:
    """Return the file or folder of a format that is written; None where nothing tells.

    Args:
        form: The format.
        out: What the command line names, or None for the default: `PHOTO.masks.png` beside `PHOTO.jpg`.
        image: The only image, or None if there are several, or it is no file.
    """
    if out is not None:
        return out / f"masks{form.suffix}" if form.files is None and not out.suffix else out
    suffix = "" if form.is_folder else form.suffix
    return None if image is None else image.with_name(f"{image.stem}{MASKS}{suffix}")


def format_of(path: Path | None, name: str | None) -> MaskFormat:
    """Return the format of a name, or else that of a file's suffix; for `.json` COCO, for `.png` and none the overlay.

    Raises:
        ValueError: There is no such format, or a file has the suffix of another one.
    """
    if name is not None and name not in FORMATS:
        raise ValueError(f"--format: expected {', '.join(FORMATS)}, got {name!r}")
    suffix = "" if path is None else path.suffix.lower()
    if name is None:
        if not suffix:
            return FORMATS[OVERLAY]
        chosen = next((entry for entry in FORMATS.values() if entry.suffix == suffix), None)
        if chosen is None:
            endings = ", ".join(dict.fromkeys(entry.suffix for entry in FORMATS.values()))
            raise ValueError(
                f"--out: expected a name that ends in {endings}, or a folder, got {path}; or give --format"
            )
        return chosen
    chosen = FORMATS[name]
    known = {entry.suffix for entry in FORMATS.values()}
    if suffix in known and suffix != chosen.suffix:
        raise ValueError(f"--out: expected a name that ends in {chosen.suffix} for {name}, got {path}")
    return chosen
