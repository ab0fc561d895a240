"""Read image files of any kind as HWC uint8 RGB, and a folder of images as a dataset."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saqsam.data.decoding import MAX_PIXELS, decode_image, load_upright, open_image, read_size
from saqsam.data.high_bit_depth import read_deep
from saqsam.data.paths import describe_folder, expand_home, is_hidden
from saqsam.data.pixels import picture_to_rgb, to_rgb
from saqsam.data.types import Sample

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageFolder",
    "ImageNote",
    "decode_image",
    "list_images",
    "read_image",
    "read_image_with_notes",
    "read_size",
]

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
"""Suffixes, in lower case, of the files that count as images in a folder."""

FIRST_OF_SEVERAL = "first of several pages or frames read"


class ImageNote(UserWarning):
    """Warning about an assumption on an image, such as the bit depth of 16-bit data."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as HWC uint8 RGB in [0, 255].

    Grayscale is repeated over the three channels; palettes, CMYK, YCbCr and 1-bit images are converted; an
    alpha channel is dropped, which keeps the colors stored under transparent pixels. EXIF orientation is
    applied, so height and width are those of the picture as it is shown. Of several pages or frames the first is
    read. Data of more than 8 bits are scaled by their bit depth (`pixels.scale_integers`), floating point data
    from [0, 1].

    Args:
        path: The file, in one of `decoding.FORMATS`.

    Returns:
        The image, writable and contiguous.

    Raises:
        ValueError: The file does not exist, is not an image, is damaged, exceeds `decoding.MAX_PIXELS`, `MAX_SIDE` or
            `MAX_ASPECT`, or has pixels without an agreed range: negative values, integers above 65535, or floats
            outside [0, 1].

    Warns:
        ImageNote: Only the first page or frame was read, or the range of the data was assumed.
    """
    image, notes = read_image_with_notes(path)
    if notes:
        warnings.warn(f"{path}: {'; '.join(notes)}", ImageNote, stacklevel=2)
    return image


def read_image_with_notes(path: str | Path) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Read an image file as `read_image` does, and return its warnings as notes instead of issuing them."""
    path = Path(path)
    with open_image(path) as image:
        deep = read_deep(path, image)
        if deep is not None:
            rgb, notes = to_rgb(deep[0])[0], deep[1]
        else:
            load_upright(image)
            rgb, notes = picture_to_rgb(image)
        if _has_several_frames(image):
            notes = (*notes, FIRST_OF_SEVERAL)
    return rgb, notes


def read_image_bytes(content: bytes, name: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Read an image from memory as `read_image_with_notes` reads a file.

    Args:
        content: The bytes of an image file.
        name: Name of the image for error messages.

    Raises:
        ValueError: As `read_image`.
    """
    # Decoders read a file several times, each as it needs it.
    with tempfile.TemporaryDirectory(prefix="saqsam-") as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return read_image_with_notes(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None


def _has_several_frames(image: Image.Image) -> bool:
    """Return whether a decoded file has several frames. For a GIF this discards the decoded first frame."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damage behind the first frame of a GIF may raise any exception
        return True


def list_images(folder: str | Path) -> list[Path]:
    """List the image files directly in `folder` (by their suffixes, `IMAGE_SUFFIXES`), sorted by name.

    Hidden files, such as the `._a.png` of macOS, are ignored.

    Raises:
        ValueError: `folder` is not a folder, or holds no image file.
    """
    folder = expand_home(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder of images, found {'a file' if folder.exists() else 'nothing'}"
        )
    files = sorted(path for path in folder.iterdir() if _is_image(path))
    if not files:
        raise ValueError(
            f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none; found "
            f"{describe_folder(folder)}"
        )
    return files


def has_images(folder: Path) -> bool:
    """Return whether `list_images` finds any image in a folder."""
    return any(_is_image(path) for path in folder.iterdir())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path) and path.is_file()


class ImageFolder:
    """A folder of images as a `Dataset` without objects, for calibration but not for evaluation.

    Image ids count from 1 in the order of the sorted file names.

    Args:
        folder: The folder; subfolders are not entered.
        limit: Keep the first `limit` files; None keeps all.

    Raises:
        ValueError: There is no such folder, or no image in it. A damaged file is reported on access.
    """

    def __init__(self, folder: str | Path, *, limit: int | None = None) -> None:
        self._files = list_images(folder)[:limit]
        self.name = expand_home(folder).resolve().name

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        path = self._files[index]
        image, notes = read_image_with_notes(path)
        return Sample(index % len(self) + 1, path.name, image, notes=Counter(notes))
