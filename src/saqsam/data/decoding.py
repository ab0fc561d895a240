"""Open untrusted image files: accepted formats, limits checked on the header, a single exception type."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from saqsam.data.orientation import TRANSPOSED
from saqsam.data.pillow_warnings import pillow_warnings_ignored
from saqsam.utils.errors import MAX_MESSAGE_LENGTH, shorten, shorten_message

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted formats under Pillow's names. PPM stands for PBM, PGM, PPM and PFM."""

MAX_PIXELS = 178_956_970
"""Limit on height x width: 13,377 px squared, the size at which Pillow itself refuses."""

MAX_SIDE = 65_536
"""Limit on height and on width. JPEG, the format of most photographs, ends at 65,535."""

MAX_ASPECT = 10_000
"""Limit on the longer side as a multiple of the shorter one.

A SAM resizes the longer side to 1024 px, where an image of more than 1024:1 is a line already.
"""

MAX_TILES = 2**17
"""Limit on strips and tiles of a TIFF: twice the rows of the longest picture."""

_ORIENTATION = ExifTags.Base.Orientation
_BIG_TIFF_SIGNATURES = (b"II+\0", b"MM\0+")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", *_BIG_TIFF_SIGNATURES)
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324


class ImageError(ValueError):
    """Raised for an image outside the limits, or with pixels of a kind that is not supported."""


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file, check its header and yield it before its pixels are decoded.

    Whatever a decoder raises inside the block becomes a ValueError that names the file.

    Args:
        path: The file.

    Raises:
        ValueError: There is no such file, its format is not one of `FORMATS`, its size is outside the limits, or the
            block raised an exception.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ImageError(f"expected an image file, found {'a folder' if path.is_dir() else 'nothing'}")
        with pillow_warnings_ignored():
            _check_tiles(path)
            with Image.open(path, formats=_available_formats()) as image:
                check_size(image.height, image.width)
                yield image
    except ImageError as error:
        raise ValueError(f"{_name(path)}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{_name(path)}: expected at most {MAX_PIXELS} pixels ({shorten_message(error)})"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{_name(path)}: expected a readable image ({', '.join(FORMATS)}), "
            "found another format or a damaged header"
        ) from error
    # Decoders raise exceptions of any type on damaged data, RuntimeError and MemoryError among them.
    except Exception as error:
        reason = shorten_message(error) or type(error).__name__
        raise ValueError(f"{_name(path)}: expected a readable image ({reason})") from error


def decode_image(path: str | Path, convert: Callable[[Image.Image], NDArray[Any]]) -> NDArray[Any]:
    """Decode an image file upright and return the result of `convert`.

    Args:
        path: The file.
        convert: Converts the decoded image to an array; may raise ValueError.

    Raises:
        ValueError: As `open_image`.
    """
    with open_image(path) as image:
        load_upright(image)
        return convert(image)


def load_upright(image: Image.Image) -> None:
    """Decode the pixels of an opened image and apply its EXIF orientation, in place.

    A damaged EXIF block leaves the picture as it is stored.
    """
    image.load()
    with contextlib.suppress(Exception):  # Pillow's EXIF parser raises exceptions of any type, too
        ImageOps.exif_transpose(image, in_place=True)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of the upright picture in a file, from its header alone.

    Raises:
        ValueError: As `open_image`. Damage behind the header goes unnoticed.
    """
    with open_image(path) as image:
        width, height = image.size
        with contextlib.suppress(Exception):  # as in `load_upright`
            if _exif(Path(path), image).get(_ORIENTATION, 1) in TRANSPOSED and image.format != "TIFF":
                return width, height
        return height, width  # Pillow has already swapped those of a TIFF


def _exif(path: Path, image: Image.Image) -> Image.Exif:
    """Return the EXIF tags of an opened image without decoding it."""
    if image.format == "PNG" and not _has_late_metadata(path):
        # The method of PNG files decodes the whole picture to get at chunks behind it.
        return Image.Image.getexif(image)
    return image.getexif()


def _has_late_metadata(path: Path) -> bool:
    names = [name for name, _ in png_chunks(path)]
    behind = names[names.index(b"IDAT") :] if b"IDAT" in names else []
    return b"eXIf" in behind or b"iTXt" in behind


def png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the first bytes, at most 16, of each chunk of a PNG."""
    with path.open("rb") as file:
        file.seek(8)  # the signature
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            head = file.read(min(length, 16))
            yield name, head
            file.seek(length - len(head) + 4, os.SEEK_CUR)  # the checksum follows


def _check_tiles(path: Path) -> None:
    """Raise ImageError if a TIFF has too many strips or tiles; Pillow would make an object of each on opening it."""
    with path.open("rb") as file:
        header = file.read(8)
        if header[:4] not in _TIFF_SIGNATURES:
            return
        if header[:4] in _BIG_TIFF_SIGNATURES:
            header += file.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
        count = max(len(directory.get(tag, ())) for tag in (_STRIP_OFFSETS, _TILE_OFFSETS))
        if count > MAX_TILES:
            raise ImageError(f"expected at most {MAX_TILES} strips or tiles, found {count}")


def check_size(height: int, width: int) -> None:
    """Raise ImageError if a picture is outside `MAX_SIDE`, `MAX_ASPECT` or `MAX_PIXELS`."""
    actual = f"found {shorten(height)} x {shorten(width)}"
    if height < 1 or width < 1:
        raise ImageError(f"expected at least one pixel, {actual}")
    if height * width > MAX_PIXELS:
        raise ImageError(f"expected at most {MAX_PIXELS} pixels, {actual}")
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"expected sides of at most {MAX_SIDE} pixels, {actual}")
    check_aspect(height, width)


def check_aspect(height: int, width: int) -> None:
    """Raise ImageError if one side is more than `MAX_ASPECT` times the other."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"expected sides of a ratio of at most {MAX_ASPECT}, found {height} x {width}")


def _available_formats() -> list[str]:
    """Return the accepted formats for which this build of Pillow has a decoder."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _name(path: Path) -> str:
    text = str(path)
    return text if len(text) <= MAX_MESSAGE_LENGTH else shorten_message(text)
