"""Images of more than 8 bits per channel, scaled by the stated bit depth or by that of their data."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saqsam.data.images import ImageNote, read_image, read_image_with_notes
from saqsam.data.open import open_dataset
from saqsam.data.pixels import scale_integers


def ramp(bits: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Every gray level of a bit depth, as far as there are pixels, black and white among them."""
    return np.linspace(0, 2**bits - 1, size[0] * size[1]).round().astype(np.uint16).reshape(size)


def in_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def write_png(path: Path, values: np.ndarray, significant: Sequence[int] = ()) -> Path:
    """Write 16-bit gray, gray and alpha, colors, or colors and alpha, with an sBIT chunk if asked for."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        + (chunk(b"sBIT", bytes(significant)) if significant else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def write_tiff(
    path: Path,
    values: np.ndarray,
    tags: dict[int, tuple[int, ...]] | None = None,
    *,
    order: str = "<",
    planar: bool = False,
) -> Path:
    """Write an uncompressed TIFF of 16-bit samples; `tags` are of type SHORT and added or replaced."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    planes = np.moveaxis(values.reshape(height, width, channels), 2, 0) if planar else values[None]
    strips = [plane.astype(f"{order}u2").tobytes() for plane in planes]
    entries: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("H", (width,)),
        257: ("H", (height,)),
        258: ("H", (16,) * channels),
        259: ("H", (1,)),
        262: ("H", (1 if channels == 1 else 2,)),
        273: ("I", tuple(8 + sum(map(len, strips[:place])) for place in range(len(strips)))),
        277: ("H", (channels,)),
        278: ("H", (height,)),
        279: ("I", tuple(map(len, strips))),
        284: ("H", (2 if planar else 1,)),
        **{tag: ("H", value) for tag, value in (tags or {}).items()},
    }
    pixels = b"".join(strips)
    directory = 8 + len(pixels)
    extra_at, extra, body = directory + 2 + 12 * len(entries) + 4, b"", b""
    for tag, (code, value) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(value)}{code}", *value)
        if len(content) > 4:
            content, extra = struct.pack(f"{order}I", extra_at + len(extra)), extra + content
        body += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(value)) + content.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    path.write_bytes(start + pixels + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + extra)
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_gray_levels_of_every_depth_survive(tmp_path: Path, suffix: str, bits: int) -> None:
    values, path = ramp(bits), tmp_path / f"a{suffix}"
    if suffix == ".jp2":
        Image.fromarray(values).save(path, irreversible=False)
    else:
        assert cv2.imwrite(str(path), values)
    image, notes = read_image_with_notes(path)
    np.testing.assert_array_equal(image, np.dstack([in_8_bits(values, bits)] * 3))
    assert notes == (() if bits == 16 else (f"pixel values scaled as {bits}-bit data",))


@pytest.mark.parametrize("bits", [9, 10, 11, 12, 13, 14, 15, 16])
def test_every_depth_keeps_at_least_128_gray_levels(tmp_path: Path, bits: int) -> None:
    image, _ = read_image_with_notes(write_png(tmp_path / "a.png", ramp(bits)))
    assert len(np.unique(image)) >= 128
    assert image.max() >= 127


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".png", []), (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 1]), (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 5])],
)
def test_both_bytes_of_colors_count(
    tmp_path: Path, suffix: str, options: list[int], channels: int, bits: int
) -> None:
    gray = ramp(bits)
    values = np.dstack([gray, gray[::-1], gray[:, ::-1], gray][:channels])
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), values[:, :, [2, 1, 0, 3][:channels]], options)
    image, _ = read_image_with_notes(path)
    np.testing.assert_array_equal(image, in_8_bits(values[:, :, :3], bits))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_planes_and_byte_orders(tmp_path: Path, order: str, planar: bool) -> None:
    gray = ramp(12)
    values = np.dstack([gray, gray[::-1], gray[:, ::-1]])
    image, _ = read_image_with_notes(write_tiff(tmp_path / "a.tif", values, order=order, planar=planar))
    np.testing.assert_array_equal(image, in_8_bits(values, 12))


def test_gray_with_alpha_and_binary_colors(tmp_path: Path) -> None:
    values = np.dstack([ramp(12), np.full((32, 48), 65535, np.uint16)])
    image, _ = read_image_with_notes(write_png(tmp_path / "a.png", values))
    np.testing.assert_array_equal(image, np.dstack([in_8_bits(ramp(12), 12)] * 3))
    colors = np.dstack([ramp(12), ramp(12)[::-1], ramp(12)])
    (tmp_path / "a.ppm").write_bytes(b"P6 48 32 65535\n" + colors.astype(">u2").tobytes())
    image, notes = read_image_with_notes(tmp_path / "a.ppm")
    np.testing.assert_array_equal(image, in_8_bits(colors, 12))
    assert notes == ("pixel values scaled as 12-bit data",)


@pytest.mark.parametrize("stated", [10, 12, 14, 16])
def test_a_stated_depth_applies_to_dark_images(tmp_path: Path, stated: int) -> None:
    dark = np.full((4, 5), 300, np.uint16)
    expected = np.full((4, 5, 3), round(300 * 255 / (2**stated - 1)), np.uint8)
    for path in (
        write_png(tmp_path / "gray.png", dark, [stated]),
        write_png(tmp_path / "colors.png", np.dstack([dark] * 4), [stated, stated, stated, 16]),
        *([write_tiff(tmp_path / "a.tif", dark, {281: (2**stated - 1,)})] if stated < 16 else []),
        *([write_tiff(tmp_path / "b.tif", dark, {281: (2**stated - 500,)})] if stated < 16 else []),
    ):
        np.testing.assert_array_equal(read_image_with_notes(path)[0], expected)


def test_a_pgm_is_scaled_by_the_value_that_it_states(tmp_path: Path) -> None:
    for header, content in (
        (b"P5 2 1 1000\n", struct.pack(">2H", 400, 1000)),
        (b"P2 2 1 1000\n", b"400 1000"),
        (b"P5 2 1 100\n", bytes([40, 100])),
    ):
        (tmp_path / "a.pgm").write_bytes(header + content)
        image = read_image(tmp_path / "a.pgm")
        np.testing.assert_array_equal(image[0, :, 0], [102, 255])
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 1000\n" + bytes(6))
    with pytest.raises(ValueError, match="expected 4 samples, found 3: the file is truncated"):
        read_image(tmp_path / "a.pgm")


def test_data_beyond_a_stated_depth_use_the_full_range(tmp_path: Path) -> None:
    # As the PNG specification asks for: 12 significant bits, scaled to 16.
    values = ramp(12) * 16
    image, notes = read_image_with_notes(write_png(tmp_path / "a.png", values, [12]))
    np.testing.assert_array_equal(image[:, :, 0], in_8_bits(values, 16))
    assert notes == ()


def test_white_is_zero(tmp_path: Path) -> None:
    image, _ = read_image_with_notes(write_tiff(tmp_path / "a.tif", ramp(12), {262: (0,)}))
    np.testing.assert_array_equal(image[:, :, 0], 255 - in_8_bits(ramp(12), 12))


def test_floating_point_files(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    for suffix in (".tif", ".pfm"):
        Image.fromarray(values).save(tmp_path / f"a{suffix}")
        image, notes = read_image_with_notes(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(image[:, :, 0], np.rint(values * 255))
        assert notes == ("floating point values scaled from [0, 1]",)
    for bad in (np.float32(255), np.float32(-1), np.float32("nan"), np.float32("inf")):
        Image.fromarray(np.full((2, 2), bad)).save(tmp_path / "bad.tif")
        with pytest.raises(ValueError, match=r"bad\.tif: expected floating point values in \[0, 1\], found"):
            read_image(tmp_path / "bad.tif")


def test_signed_and_32_bit_integers(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1024, 3071]], np.int32)).save(tmp_path / "ct.tif")
    with pytest.raises(ValueError, match=r"from 0 to 65535, found -1024 to 3071: add an offset"):
        read_image(tmp_path / "ct.tif")
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"at most 16 bits, found 0 to 70000"):
        read_image(tmp_path / "a.tif")
    Image.fromarray(np.array([[0, 4095]], np.int32)).save(tmp_path / "b.tif")
    np.testing.assert_array_equal(read_image_with_notes(tmp_path / "b.tif")[0][0, :, 0], [0, 255])


@given(st.lists(st.integers(0, 65535), min_size=1), st.none() | st.integers(8, 16))
def test_scaling_keeps_order_and_uses_a_bit_depth(values: list[int], stated_bits: int | None) -> None:
    stated = None if stated_bits is None else 2**stated_bits - 1
    scaled, white = scale_integers(np.array(values), stated)
    np.testing.assert_array_equal(scaled, np.rint(np.array(values) * 255 / white))
    assert max(values) <= white
    if stated is None:
        assert white in (255, 1023, 4095, 16383, 65535)
        assert white == 255 or max(values) > white // 4
    else:
        assert white == (stated if max(values) <= stated else 65535)


def test_one_warning_per_file_and_one_count_per_sample(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", ramp(12))
    with pytest.warns(ImageNote, match=r"a\.png: pixel values scaled as 12-bit data") as caught:
        read_image(tmp_path / "a.png")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    data = open_dataset(tmp_path)
    assert [dict(data[index].notes) for index in range(2)] == [{"pixel values scaled as 12-bit data": 1}] * 2
