"""Write the masks of one image or many to a file or a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from saqsam.segmentation.formats.registry import COCO_POLYGONS, YOLO, Context, MaskFormat
from saqsam.segmentation.objects import SegmentedImage
from saqsam.utils.atomic_write import write_atomic

CLASSES = "classes.txt"
"""File of a folder of YOLO text with the names of the classes."""


MARKER = ".saqsam-masks"
"""Empty file in a folder of masks, by which `--overwrite` knows that the folder may be replaced."""


class MaskWriter:
    """Writer of masks in one format.

    Args:
        form: The format.
        target: File or folder to write; in a folder, files have the name of their image.
        names: Names of all images.
        is_folder: Whether the target is a folder.
        tolerance: Tolerance of polygons in pixels, see `outlines`.
        final: Final place of the target, for paths of images relative to it; None if it stays where it is.
    """

    def __init__(
        self,
        form: MaskFormat,
        target: Path,
        names: Sequence[str],
        *,
        is_folder: bool,
        tolerance: float,
        final: Path | None = None,
    ) -> None:
        self.form, self.target, self.tolerance = form, target, tolerance
        self.is_folder = is_folder
        self.final = target if final is None else final
        self._stems = output_stems(names)
        self._images: list[SegmentedImage] = []
        self._last: SegmentedImage | None = None
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)

    def add(self, image: SegmentedImage, picture: NDArray[np.uint8]) -> None:
        """Write the masks of an image, or keep them for the file of all images.

        Args:
            image: The masks.
            picture: The image itself, HWC uint8 RGB.
        """
        self._last = image
        if self.form.files is None:
            self._images.append(image)
            return
        stem = self._stems[image.name]
        folder = (self.final / f"{stem}.x" if self.is_folder else self.final).parent
        path = image.name if image.path is None else os.path.relpath(image.path.resolve(), folder.resolve())
        context = Context(picture, Path(path).as_posix(), self.tolerance)
        for ending, content in self.form.make_files(image, context):
            if not self.is_folder:
                write_atomic(self.target, content)
            elif self.form.is_folder and len(self._stems) == 1:
                write_atomic(self.target / ending.lstrip("/"), content)
            else:
                write_atomic(self.target / f"{stem}{ending}", content)

    def finish(self) -> None:
        """Write the file of all images; in a folder, the names of classes and the marker."""
        if self.form.files is None:
            from saqsam.segmentation.formats.coco import coco_document

            is_polygons = self.form.name == COCO_POLYGONS
            content = coco_document(self._images, polygons=is_polygons, tolerance=self.tolerance)
            write_atomic(self.target, content)
        elif self.is_folder:
            if self.form.name == YOLO and self._last is not None:
                from saqsam.segmentation.formats.yolo import class_names

                write_atomic(self.target / CLASSES, class_names(self._last))
            write_atomic(self.target / MARKER, b"")


def output_stems(names: Sequence[str]) -> dict[str, str]:
    """Return the path of each image's files without their suffix, by the name of the image.

    That is its name without its suffix, or with it where another image has the same without.

    Raises:
        ValueError: Two images have the same name.
    """
    check_names(names)
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    counts = Counter(stems.values())
    return {name: name if counts[stem] > 1 else stem for name, stem in stems.items()}


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if two images have the same name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"images: expected different names, got {twice[0]} twice")
