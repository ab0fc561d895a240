"""A list of images as a dataset: arrays, tensors, PIL images and paths, as a notebook holds them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from saqsam.data.image_input import ImageInput, as_rgb, check_image
from saqsam.data.images import read_image_with_notes
from saqsam.data.paths import expand_home
from saqsam.data.types import Sample

ImageSource = ImageInput | str | os.PathLike[str]
"""One image of an `ImageList`: pixels, or the path of an image file."""


class ImageList:
    """Images in memory and image files, mixed, as a `Dataset` without objects.

    Images in memory are converted as `Predictor.set_image` converts them: a PIL image is taken as it is stored, without
    its EXIF orientation. Files are read as `saqsam.data.read_image` reads them: upright, by their EXIF orientation. The
    list refers to its images and copies none; pixels are converted, and files are read, one at a time on access.

    Image ids count from 1. An image in memory is named `image_ID`, a file by its own name.

    Args:
        images: Arrays, tensors or nested lists of layout HW, HWx1, HWx3 or HWx4 (RGB), PIL images, and paths; a leading
            `~` of a path is the home folder.
        limit: Keep the first `limit` images; None keeps all.

    Attributes:
        name: `images`.

    Raises:
        ValueError: The list is empty, or an item is not an image by its type or shape. Values out of range and files
            that cannot be read are reported on access, with the position of the image, counted from 1.
    """

    name = "images"

    def __init__(self, images: Sequence[ImageSource], *, limit: int | None = None) -> None:
        self._images = tuple(images)[:limit]
        if not self._images:
            raise ValueError("images: expected at least one image, got an empty list")
        for index, image in enumerate(self._images):
            if not isinstance(image, (str, os.PathLike)):
                check_image(image, self._label(index))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """Convert or read one image.

        Raises:
            ValueError: Its values are out of range, or its file cannot be read.
        """
        image = self._images[index]
        index %= len(self)
        if isinstance(image, (str, os.PathLike)):
            path = expand_home(Path(image))
            rgb, notes = read_image_with_notes(path)
            file_name = path.name
        else:
            rgb, notes = as_rgb(image, name=self._label(index))
            file_name = f"image_{index + 1}"
        return Sample(index + 1, file_name, rgb, notes=Counter(notes))

    def _label(self, index: int) -> str:
        return f"image {index + 1} of {len(self)}"
