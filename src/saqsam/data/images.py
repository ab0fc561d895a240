"""Reading image files of any kind into HWC uint8 RGB, and a bare folder of them as a data set."""

import contextlib
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from saqsam.data.datasets import Sample
from saqsam.data.paths import describe_folder, expand_home, is_hidden

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name endings, in lower case, that count as images in a folder."""

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded (the size at which Pillow itself refuses)."""

_ORIENTATION = ExifTags.Base.Orientation
_LYING = (5, 6, 7, 8)  # rows are stored as columns

# What Pillow's decoders raise on damaged data; SyntaxError is its own for a broken header.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    IndexError,
    TypeError,
    OverflowError,
)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as HWC uint8 RGB in [0, 255].

    Greyscale is repeated over the three channels; palettes, CMYK, YCbCr and 1-bit images are converted; an
    alpha channel is dropped, which keeps the colours stored under transparent pixels. 16-bit greyscale is
    scaled by its full range (65535 becomes 255), whatever range the picture uses. EXIF orientation is
    applied, so height and width are those of the picture as it is shown. Of several frames the first is read.

    Args:
        path: The file.

    Returns:
        The image, writable and contiguous.

    Raises:
        ValueError: The file does not exist, is no image, is truncated, has more than `MAX_PIXELS` pixels, or
            has pixels of a type with no agreed range (32-bit integers or floats).
    """
    return decode_image(path, _to_rgb)


def read_values(path: str | Path) -> NDArray[np.uint16]:
    """Read an image file whose values are no colours but labels or marks.

    Args:
        path: The file: one channel of 1, 8 or 16 bits, or a palette, of which the indices are taken; of several
            channels the largest value counts, alpha left aside. EXIF orientation is applied.

    Returns:
        HW uint16, as stored.

    Raises:
        ValueError: As `read_image`.
    """
    return decode_image(path, _to_values)


def decode_image(path: str | Path, convert: Callable[[Image.Image], NDArray[Any]]) -> NDArray[Any]:
    """Read an image file, of which `convert` makes an array.

    Args:
        path: The file.
        convert: Given the whole picture, upright; may raise ValueError.

    Raises:
        ValueError: As `read_image`, and what `convert` raises, with the name of the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: expected an image file, found {'a folder' if path.is_dir() else 'nothing'}"
        )
    with warnings.catch_warnings():
        # Pillow warns of large sizes (checked below), palette transparency and odd metadata: no matter here.
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                return convert(_loaded(image))
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path}: expected at most {MAX_PIXELS} pixels ({error})") from error
        except _DECODE_ERRORS as error:
            raise ValueError(f"{path}: expected a readable image ({error})") from error


def _loaded(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS} pixels, got {height} x {width}")
    image.load()
    _turn_upright(image)
    return image


def _to_values(image: Image.Image) -> NDArray[np.uint16]:
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits per channel, got floating point")
    if image.mode == "I" or image.mode.startswith("I;16") or image.mode in ("1", "L", "P"):
        values = np.asarray(image)
    elif image.mode == "LA":
        values = np.asarray(image)[..., 0]
    else:
        values = np.asarray(image.convert("RGB")).max(axis=2)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("expected 8 or 16 bits per channel, got 32-bit integers")
    return values.astype(np.uint16)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("expected 8 or 16 bits per channel, got 32-bit integers")
        eight_bits = np.rint(values * (255.0 / 65535.0)).astype(np.uint8)
        return np.repeat(eight_bits[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits per channel, got floating point")
    return np.array(image.convert("RGB"))


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation; a damaged EXIF block leaves the picture as it is stored."""
    with contextlib.suppress(*_DECODE_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) that `read_image` gives a file, from its head alone.

    Raises:
        ValueError: The file does not exist or is no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `read_image`
        try:
            with Image.open(path) as image:
                width, height = image.size
                with contextlib.suppress(*_DECODE_ERRORS):
                    if image.getexif().get(_ORIENTATION, 1) in _LYING:
                        return width, height
        except (Image.DecompressionBombError, *_DECODE_ERRORS) as error:
            raise ValueError(f"{path}: expected a readable image ({error})") from error
    return height, width


def list_images(folder: str | Path) -> list[Path]:
    """List the image files directly in `folder` (by their suffixes, `IMAGE_SUFFIXES`), sorted by name.

    Hidden files, such as the `._a.png` of macOS, are passed over.

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
    """Whether `list_images` finds any image in a folder."""
    return any(_is_image(path) for path in folder.iterdir())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path) and path.is_file()


class ImageFolder:
    """A bare folder of images as a `Dataset`: samples have no instances, so it can calibrate but not score.

    Image ids count from 1 in the order of the sorted file names.

    Args:
        folder: The folder; subfolders are not entered.
        limit: Keep the first `limit` files; None keeps all.

    Raises:
        ValueError: No folder, or no image in it. A damaged file is reported when it is read.
    """

    def __init__(self, folder: str | Path, *, limit: int | None = None) -> None:
        self._files = list_images(folder)[:limit]
        self.name = expand_home(folder).resolve().name

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        path = self._files[index]
        return Sample(image_id=index % len(self) + 1, file_name=path.name, image=read_image(path))
