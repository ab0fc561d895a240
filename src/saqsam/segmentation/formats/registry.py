"""The formats of masks, by name and by the suffix of a file; imports none of them, nor NumPy."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saqsam.segmentation.objects import SegmentedImage


@dataclass(frozen=True)
class Context:
    """Inputs of a format besides the masks of an image.

    Attributes:
        picture: The image, HWC uint8 RGB.
        image_path: Path of the image relative to the file.
        tolerance: Tolerance of polygons in pixels, see `outlines`.
    """

    picture: NDArray[np.uint8]
    image_path: str
    tolerance: float


Files = Iterator[tuple[str, bytes]]
"""Endings of file names, behind the name of the image without its suffix, and contents."""


@dataclass(frozen=True)
class MaskFormat:
    """A format of masks.

    Attributes:
        name: Its name.
        description: Description for help texts.
        suffix: Suffix of its files.
        files: `module:function` that makes the files of an image; None for a format with one file for all images.
        is_folder: Whether an image has several files.
    """

    name: str
    description: str
    suffix: str
    files: str | None
    is_folder: bool = False

    def make_files(self, image: SegmentedImage, context: Context) -> Files:
        """Yield the files of an image."""
        assert self.files is not None
        files: Files = pkgutil.resolve_name(f"saqsam.segmentation.formats.{self.files}")(image, context)
        return files


MASKS = ".masks"
"""Ending of the default name of masks, behind the name of the image."""
OVERLAY = "overlay"
COCO, COCO_POLYGONS = "coco", "coco-polygons"
YOLO = "yolo"
PARQUET = "parquet"

FORMATS: Mapping[str, MaskFormat] = {
    entry.name: entry
    for entry in (
        MaskFormat(OVERLAY, "the image with its masks drawn over it", ".png", "pictures:overlay_files"),
        MaskFormat(COCO, "COCO JSON of all images, run lengths", ".json", None),
        MaskFormat(COCO_POLYGONS, "the same with polygons", ".json", None),
        MaskFormat(
            "labels", "a PNG whose pixels are the number of their object", ".png", "pictures:label_files"
        ),
        MaskFormat("masks", "a PNG for each mask", ".png", "pictures:mask_files", is_folder=True),
        MaskFormat(PARQUET, "Parquet files of a bulk run, for many images", ".parquet", None, is_folder=True),
        MaskFormat("npz", "NumPy arrays", ".npz", "arrays:npz_files"),
        MaskFormat("labelme", "labelme's polygons", ".json", "labelme:labelme_files"),
        MaskFormat(YOLO, "YOLO's segmentation text", ".txt", "yolo:yolo_files"),
        MaskFormat(
            "geojson", "GeoJSON, in degrees for a georeferenced TIFF", ".geojson", "geojson:geojson_files"
        ),
    )
}


MERGED_FORMATS = (COCO, COCO_POLYGONS, PARQUET)
"""Formats of the file that a bulk run is merged into."""


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
