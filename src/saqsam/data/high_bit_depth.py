"""Read image files with more than 8 bits per channel, scaled by the white value that they state.

Pillow decodes gray samples of 16 bits as they are, but keeps only the high byte of 16-bit colors. Those are decoded
twice, once per byte.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saqsam.data.decoding import ImageError, load_upright, open_image, png_chunks
from saqsam.data.pixels import WHITE_16, describe_scale, is_deep_gray, scale_floats, scale_integers, strips

_PNG_DEPTHS = b"sBIT"
_PNG_PIXELS = b"IDAT"
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_MAXIMUM, _TIFF_PLANAR, _TIFF_TYPED_MAXIMUM = 258, 262, 281, 284, 341
_WHITE_IS_ZERO, _SEPARATE_PLANES = 0, 2
_SIZ_MARKER = b"\xff\x4f\xff\x51"
_SIZ_DEPTH = 42
"""Distance from the start of a JPEG 2000 codestream to the depth of its first channel."""
_SIZ_SEARCHED = 2**16
_COLORS_16 = re.compile(r"(?:RGB|RGBA|RGBX|R|G|B|A);16[BLN]|LA;16B")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte order that makes Pillow keep the low byte of 16-bit samples instead of the high byte."""


def read_deep(path: Path, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]] | None:
    """Decode a file with more than 8 bits per channel.

    Args:
        path: The file.
        image: The file as `open_image` yields it, not yet decoded.

    Returns:
        Gray [H, W] or colors [H, W, 3], uint8, upright, and notes on the range; None for a file of 8 bits, which
        stays undecoded.

    Raises:
        ImageError: The values are outside the ranges of `pixels.to_rgb`.
    """
    tiles = getattr(image, "tile", [])
    if image.format == "PPM" and tiles and tiles[0].codec_name == "ppm":
        return _read_ppm(path, image)
    if is_deep_gray(image):
        return _read_gray(path, image)
    rawmodes = _color_rawmodes(image)
    return None if rawmodes is None else _read_colors(path, image, rawmodes)


def _read_ppm(path: Path, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Read a binary PGM or PPM whose white is not 255; Pillow decodes it sample by sample in Python."""
    tile = cast(Any, image).tile[0]
    white = int(tile.args[-1])
    shape = (image.height, image.width, len(image.getbands()))
    values = np.fromfile(path, ">u2" if white > 255 else np.uint8, int(np.prod(shape)), offset=tile.offset)
    if values.size < np.prod(shape):
        raise ImageError(f"expected {np.prod(shape)} samples, found {values.size}: the file is truncated")
    values = np.minimum(values, white).reshape(shape)
    if white < WHITE_16:
        return _as_picture(scale_integers(values, white)[0]), ()
    scaled, white = scale_integers(values)
    return _as_picture(scaled), describe_scale(white)


def _as_picture(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return samples[:, :, 0] if samples.shape[2] == 1 else samples


def _read_gray(path: Path, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    white = _stated_white(path, image)
    # Pillow itself inverts samples of 8 bits only.
    is_inverted = image.format == "TIFF" and _tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    load_upright(image)
    values = np.asarray(image)
    if image.mode == "F":
        scaled = scale_floats(values)
        notes: tuple[str, ...] = ("floating point values scaled from [0, 1]",)
    else:
        scaled, white = scale_integers(values, white)
        notes = describe_scale(white)
    return (255 - scaled if is_inverted else scaled), notes


def _read_colors(
    path: Path, image: Image.Image, rawmodes: list[str]
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    white = _stated_white(path, image)
    if rawmodes == ["LA;16B"]:
        # Decoded as four channels of 8 bits: both bytes of the gray value, then both of alpha.
        _decode(image, ["RGBA"])
        both = np.asarray(image).astype(np.uint16)
        values = both[:, :, :1] << 8 | both[:, :, 1:2]
    else:
        _decode(image, rawmodes)
        values = np.empty((image.height, image.width, 3), np.uint16)
        for rows, strip in strips(image):
            values[rows] = np.asarray(strip)[:, :, :3].astype(np.uint16) << 8
        image.close()  # frees the decoded picture before the next one is made
        with open_image(path) as again:
            _decode(again, [mode[:-1] + _OTHER_BYTE[mode[-1]] for mode in rawmodes])
            for rows, strip in strips(again):
                values[rows] |= np.asarray(strip)[:, :, :3]
    scaled, white = scale_integers(values, white)
    return _as_picture(scaled), describe_scale(white)


def _decode(image: Image.Image, rawmodes: list[str]) -> None:
    """Decode an image with other raw modes than Pillow chose."""
    opened = cast(Any, image)
    opened.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
        for tile, mode in zip(opened.tile, rawmodes, strict=True)
    ]
    load_upright(image)


def _color_rawmodes(image: Image.Image) -> list[str] | None:
    """Return the raw mode of each tile of an image whose colors have 16 bits; None for any other image."""
    tiles = getattr(image, "tile", [])
    modes = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in tiles if tile.args]
    is_planar = image.format == "TIFF" and _tag(image, _TIFF_PLANAR) == _SEPARATE_PLANES
    if is_planar and _tag(image, _TIFF_BITS) == 16:
        # Pillow names the planes of uncompressed files without their depth.
        order = "L" if cast(Any, image).tag_v2.prefix == b"II" else "B"
        modes = [f"{mode};16{order}" if mode in ("R", "G", "B", "A") else mode for mode in modes]
    is_deep = bool(modes) and all(isinstance(mode, str) and _COLORS_16.fullmatch(mode) for mode in modes)
    return modes if is_deep and len(modes) == len(tiles) else None


def _stated_white(path: Path, image: Image.Image) -> int | None:
    """Return the white value that a file states; None if it states none, or only the largest of 16 bits."""
    if image.format == "PNG":
        bits = _png_depth(path)
        return None if bits is None else 2**bits - 1
    # Pillow scales these two to 16 bits by what they state.
    if image.format == "JPEG2000":
        return None if _jpeg2000_depth(path) == 16 else WHITE_16
    if image.format == "PPM":
        tile = cast(Any, image).tile[0]
        return WHITE_16 if tile.codec_name == "ppm_plain" and tile.args[-1] != WHITE_16 else None
    return _tiff_white(image) if image.format == "TIFF" else None


def _tiff_white(image: Image.Image) -> int | None:
    bits = _tag(image, _TIFF_BITS)
    if bits is not None and 8 < bits < 16:
        return int(2**bits - 1)
    for tag in (_TIFF_MAXIMUM, _TIFF_TYPED_MAXIMUM):
        # Some writers store the largest value of this one picture, so its bit depth counts rather than the value.
        value = _tag(image, tag)
        if value is not None and 1 <= value < WHITE_16:
            return int(2 ** int(value).bit_length() - 1)
    return None


def _tag(image: Image.Image, number: int) -> float | None:
    """Return the first value of a TIFF tag, if it is a number."""
    value = cast(Any, image).tag_v2.get(number)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, (int, float)) and math.isfinite(first) else None


def _png_depth(path: Path) -> int | None:
    """Return the significant bits of a PNG's colors, from its sBIT chunk."""
    for name, depths in png_chunks(path):
        if name == _PNG_PIXELS:
            return None
        if name == _PNG_DEPTHS and len(depths) <= 4:
            # One for gray, or three for colors; alpha has the last one.
            bits = max(depths[: 3 if len(depths) >= 3 else 1], default=0)
            return bits if 8 <= bits <= 16 else None
    return None


def _jpeg2000_depth(path: Path) -> int | None:
    """Return the bit depth of the first channel of a JPEG 2000 file."""
    with path.open("rb") as file:
        head = file.read(_SIZ_SEARCHED)
    start = head.find(_SIZ_MARKER)
    if start < 0 or len(head) <= start + _SIZ_DEPTH:
        return None
    return (head[start + _SIZ_DEPTH] & 0x7F) + 1
