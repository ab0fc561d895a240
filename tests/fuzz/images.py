"""Fuzz the image reader: damaged files of every accepted format, and headers that claim impossible sizes."""

from __future__ import annotations

import io
import random
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from fuzz.harness import VALID, Different, Tally, arguments, report, run
from saqsam.data.images import read_image, read_size

_NUMBERS = (0, 1, 2, 255, 256, 1023, 16_384, 32_767, 65_535, 65_536, 178_956_970, 2**31 - 1, 2**31, 2**32 - 1)
"""Values that are written over 16- and 32-bit fields of a header."""
_HEADER = 160
"""Bytes from the start of a file in which most fields of a header lie."""


def originals(seed: int) -> dict[str, bytes]:
    """Return whole files by kind: every accepted format, with its variants."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (48, 32))
    photo, gray = Image.fromarray(smooth), Image.fromarray(smooth[:, :, 0])
    frames = [Image.fromarray(np.roll(smooth, step * 5, axis=1)) for step in range(1, 3)]
    deep = smooth[:, :, 0].astype(np.uint16) * 16
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "saqsam " * 100, zip=True)
    text.add_itxt("Title", "saqsam", zip=True)
    several: dict[str, Any] = {"save_all": True, "append_images": frames}
    return {
        "PNG": _saved(photo, "PNG", pnginfo=text, exif=exif),
        "PNG, palette": _saved(photo.quantize(16), "PNG", transparency=3),
        "PNG, 16-bit gray": _saved(Image.fromarray(deep), "PNG"),
        "PNG, 16-bit colors": _written_by_opencv(".png", np.dstack([deep] * 3)),
        "PNG, animated": _saved(photo, "PNG", **several),
        "JPEG": _saved(photo, "JPEG", exif=exif),
        "JPEG, progressive CMYK": _saved(photo.convert("CMYK"), "JPEG", progressive=True),
        "JPEG, several pictures": _saved(photo, "MPO", **several),
        "GIF": _saved(photo, "GIF", **several),
        "WebP": _saved(photo, "WEBP", exif=exif),
        "WebP, lossless": _saved(photo.convert("RGBA"), "WEBP", lossless=True),
        "WebP, animated": _saved(photo, "WEBP", **several),
        "AVIF": _saved(photo, "AVIF", exif=exif, max_threads=1),
        "AVIF, animated": _saved(photo, "AVIF", max_threads=1, **several),
        "TIFF": _saved(photo, "TIFF", exif=exif),
        "TIFF, LZW": _saved(photo, "TIFF", compression="tiff_lzw"),
        "TIFF, JPEG": _saved(photo, "TIFF", compression="jpeg"),
        "TIFF, fax": _saved(photo.convert("1"), "TIFF", compression="group4"),
        "TIFF, pages": _saved(photo, "TIFF", **several),
        "TIFF, floats": _saved(Image.fromarray((deep / 4080).astype(np.float32)), "TIFF"),
        "TIFF, 16-bit colors": _written_by_opencv(".tif", np.dstack([deep] * 3)),
        "BMP": _saved(photo, "BMP"),
        "BMP, palette": _saved(gray, "BMP"),
        "PPM": _saved(photo, "PPM"),
        "PGM, 12-bit": b"P5 48 32 4095\n" + deep.astype(">u2").tobytes(),
        "PGM, text": b"P2 48 32 4095\n" + " ".join(map(str, deep.ravel())).encode(),
        "PBM": _saved(photo.convert("1"), "PPM"),
        "PFM": _saved(Image.fromarray((deep / 4080).astype(np.float32)), "PPM"),
        "JPEG 2000": _saved(photo, "JPEG2000"),
        "JPEG 2000, 16-bit gray": _saved(Image.fromarray(deep), "JPEG2000", no_jp2=True),
        "no accepted format": _saved(photo, "ICO") + _saved(photo, "TGA"),
    }


def _saved(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in options:  # copies, because saving as JPEG leaves its settings in an image
        options = {**options, "append_images": [frame.copy() for frame in options["append_images"]]}
    image.copy().save(buffer, format=format_name, **options)
    return buffer.getvalue()


def _written_by_opencv(suffix: str, values: np.ndarray) -> bytes:
    is_written, content = cv2.imencode(suffix, values)
    assert is_written
    return bytes(content)


def mutate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    """Return a description of one to three random changes of a file, and the changed file."""
    data, label = bytearray(content), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        action = rng.choice(_ACTIONS)
        place = rng.randrange(min(len(data), _HEADER) if rng.random() < 0.6 else len(data)) if data else 0
        action(data, place, rng, others)
        label.append(f"{action.__name__.strip('_')} at {place}")
    if content.startswith(b"\x89PNG") and rng.random() < 0.8:
        data = _with_checksums(data)  # else hardly a change would get past the checksums
        label.append("checksums")
    return ", ".join(label), bytes(data)


def _flip(data: bytearray, place: int, rng: random.Random, others: Sequence[bytes]) -> None:
    if data:
        data[place] ^= 1 << rng.randrange(8)


def _randomize(data: bytearray, place: int, rng: random.Random, others: Sequence[bytes]) -> None:
    size = min(rng.choice([1, 4, 32]), len(data) - place)
    data[place : place + size] = rng.randbytes(size)


def _number(data: bytearray, place: int, rng: random.Random, others: Sequence[bytes]) -> None:
    layout = rng.choice(["<H", ">H", "<I", ">I", "<II", ">II"])
    values = [rng.choice(_NUMBERS) & (2 ** (8 * struct.calcsize(layout[:2])) - 1) for _ in layout[1:]]
    data[place : place + struct.calcsize(layout)] = struct.pack(layout, *values)


def _digits(data: bytearray, place: int, rng: random.Random, others: Sequence[bytes]) -> None:
    data[place : place + 1] = str(rng.choice(_NUMBERS)).encode()


def _cut(data: bytearray, place: int, rng: random.Random, others: Sequence[bytes]) -> None:
    del data[place:]


def _remove(data: bytearray, place: int, rng: random.Random, others: Sequence[bytes]) -> None:
    del data[place : place + rng.choice([1, 4, 100])]


def _repeat(data: bytearray, place: int, rng: random.Random, others: Sequence[bytes]) -> None:
    data[place:place] = data[place : place + rng.choice([4, 50, 400])] * rng.choice([1, 3, 50])


def _splice(data: bytearray, place: int, rng: random.Random, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    data[place:] = other[rng.randrange(len(other)) :]


_ACTIONS: tuple[Callable[[bytearray, int, random.Random, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _randomize, _number, _number, _number),
    *(_digits, _cut, _remove, _repeat, _splice),
)


def _with_checksums(data: bytearray) -> bytearray:
    """Return a PNG with the right checksum of every chunk that is still whole."""
    fixed, place = bytearray(data), 8
    while place + 12 <= len(fixed):
        length = int.from_bytes(fixed[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[place + 4 : end]))
        place = end + 4
    return fixed


def _use(path: Path) -> str:
    """Read a file both ways."""
    image = read_image(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise Different(f"read as {image.dtype} {image.shape}")
    size = read_size(path)
    if size != image.shape[:2]:
        raise Different(f"read_size finds {size}, read_image {image.shape[:2]}")
    return VALID


def mutants(
    path: Path, content: bytes, others: Sequence[bytes], count: int, rng: random.Random
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Write `count` mutants of a file to a path, one after the other, and yield what reads them."""
    for _ in range(count):
        label, changed = mutate(content, rng, others)
        path.write_bytes(changed)
        yield label, lambda: _use(path)


def fuzz(count: int, seed: int, files: Mapping[str, bytes] | None = None) -> list[Tally]:
    """Run `count` mutants, spread over the kinds of files."""
    files = originals(seed) if files is None else files
    share, others = -(-count // len(files)), list(files.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        return [
            run(kind, mutants(path, content, others, share, random.Random(f"{seed} {kind}")))
            for kind, content in files.items()
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the long fuzz and print its table."""
    options = arguments(argv, count=6000)
    return report(fuzz(options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
