"""Images of every kind are read as HWC uint8 RGB, or refused in one line."""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from saqsam.data import decoding
from saqsam.data.images import (
    ImageFolder,
    ImageNote,
    list_images,
    read_image,
    read_image_with_notes,
    read_size,
)
from support.coco_folder import picture

GREY = np.array([[0, 100, 255], [7, 8, 9]], dtype=np.uint8)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def check(array: np.ndarray, size: tuple[int, int]) -> None:
    assert array.shape == (*size, 3)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_rgb_is_read_unchanged(tmp_path: Path) -> None:
    expected = picture((5, 4))
    result = read_image(save(Image.fromarray(expected), tmp_path / "a.png"))
    check(result, (5, 4))
    np.testing.assert_array_equal(result, expected)


def test_grayscale_is_repeated(tmp_path: Path) -> None:
    result = read_image(save(Image.fromarray(GREY), tmp_path / "a.png"))
    check(result, GREY.shape)
    for channel in range(3):
        np.testing.assert_array_equal(result[:, :, channel], GREY)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_is_scaled_by_its_whole_range(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 65535], [128, 129, 25700]], dtype=np.uint16)
    result = read_image(save(Image.fromarray(values), tmp_path / f"a{suffix}"))
    check(result, values.shape)
    np.testing.assert_array_equal(result[:, :, 0], [[0, 1, 255], [0, 1, 100]])


def test_alpha_is_dropped_and_keeps_hidden_colors(tmp_path: Path) -> None:
    rgb = picture((6, 3))
    alpha = np.zeros((6, 3, 1), dtype=np.uint8)
    rgba = Image.fromarray(np.concatenate([rgb, alpha], axis=2))
    np.testing.assert_array_equal(read_image(save(rgba, tmp_path / "a.png")), rgb)
    gray_alpha = Image.fromarray(np.stack([GREY, GREY], axis=2), mode=None).convert("LA")
    result = read_image(save(gray_alpha, tmp_path / "b.png"))
    np.testing.assert_array_equal(result[:, :, 1], GREY)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    for name, options in (("a.png", {"transparency": b"\x00\x80"}), ("b.gif", {"transparency": 0})):
        result = read_image(save(image, tmp_path / name, **options))
        np.testing.assert_array_equal(result, [[[10, 20, 30], [200, 100, 0]]])


def test_cmyk_bilevel_and_ycbcr(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 8), (255, 0, 0))
    cmyk = read_image(save(red.convert("CMYK"), tmp_path / "a.jpg", quality=100))
    check(cmyk, (8, 16))
    assert np.abs(cmyk.astype(int) - (255, 0, 0)).max() < 6
    bilevel = read_image(save(Image.new("1", (3, 2), 1), tmp_path / "b.png"))
    np.testing.assert_array_equal(bilevel, np.full((2, 3, 3), 255))
    ycbcr = read_image(save(red.convert("YCbCr"), tmp_path / "c.jpg", quality=100))
    assert np.abs(ycbcr.astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, turn: object) -> None:
    stored = picture((4, 7))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(stored), tmp_path / "a.png", exif=exif)
    result = read_image(path)
    assert read_size(path) == result.shape[:2]
    np.testing.assert_array_equal(result, turn(stored))


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture((4, 7))).save(path, exif=b"Exif\x00\x00GARBAGE-GARBAGE")
    check(read_image(path), (4, 7))
    assert read_size(path) == (4, 7)
    with pytest.raises(ValueError, match=r"none.png: expected an image file, found nothing"):
        read_size(tmp_path / "none.png")


def test_one_pixel_and_thin_images(tmp_path: Path) -> None:
    for size in ((1, 1), (1, 300), (300, 1)):
        check(read_image(save(Image.fromarray(picture(size)), tmp_path / "a.png")), size)


def test_10000_px_side(tmp_path: Path) -> None:
    result = read_image(save(Image.new("1", (10_000, 90), 1), tmp_path / "a.png"))
    assert result.shape == (90, 10_000, 3)


def test_sizes_at_which_pillow_warns_are_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    check(read_image(save(Image.fromarray(picture((12, 12))), tmp_path / "a.png")), (12, 12))


def png_header(height: int, width: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(ValueError, match=r"bomb\.png: expected at most 178956970 pixels"):
        read_image(path)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 178_956_970), "sides of at most 65536 pixels, found 1 x 178956970"),
        ((178_956_970, 1), "sides of at most 65536 pixels, found 178956970 x 1"),
        ((2500, 65_537), "sides of at most 65536 pixels, found 2500 x 65537"),
        ((1, 10_001), "sides of a ratio of at most 10000, found 1 x 10001"),
        ((60_000, 2), "sides of a ratio of at most 10000, found 60000 x 2"),
        ((14_000, 14_000), "at most 178956970 pixels"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_size])
def test_extreme_shapes_are_refused_by_their_header(
    tmp_path: Path, size: tuple[int, int], message: str, read: Callable[[Path], object]
) -> None:
    for name, content in (
        ("a.png", png_header(*size)),
        ("a.pgm", b"P5 %d %d 255\n" % size[::-1]),
        ("a.bmp", bmp_header(*size)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: expected {message}") as caught:
            read(path)
        assert len(str(caught.value)) < 300


def bmp_header(height: int, width: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)
    )


def test_long_strips_within_the_limits_are_read(tmp_path: Path) -> None:
    for width, height in ((10_000, 1), (65_536, 7), (7, 65_536)):
        path = save(Image.new("L", (width, height), 9), tmp_path / "a.png")
        assert read_image(path).shape == (height, width, 3)
        assert read_size(path) == (height, width)


def test_too_many_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.fromarray(picture((40, 50))), tmp_path / "a.tif", compression="tiff_lzw", strip_size=1)
    check(read_image(path), (40, 50))
    monkeypatch.setattr(decoding, "MAX_TILES", 39)
    for read in (read_image, read_size):
        with pytest.raises(ValueError, match=r"a\.tif: expected at most 39 strips or tiles, found 40"):
            read(path)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("codec"),
        MemoryError(),
        KeyError("tag"),
        ZeroDivisionError(),
        AttributeError("x" * 10_000),
    ],
)
def test_exceptions_of_any_type_become_one_short_value_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = save(Image.fromarray(picture((4, 4))), tmp_path / "a.png")

    def fail(self: Image.Image) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"a\.png: expected a readable image \(.") as caught:
        read_image(path)
    assert len(str(caught.value)) < 600
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("format_name", ["ICO", "TGA", "PCX", "EPS", "PDF", "ICNS"])
def test_other_formats_are_refused(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture((32, 32))).save(path, format=format_name)
    for read in (read_image, read_size):
        with pytest.raises(
            ValueError, match=r"a\.png: expected a readable image \(AVIF, .*found another format"
        ):
            read(path)


def test_compressed_text_bombs_are_refused(tmp_path: Path) -> None:
    bomb = b"Comment\0\0" + zlib.compress(bytes(2**26))
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    whole = save(Image.fromarray(picture((4, 4))), tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    with pytest.raises(ValueError, match="Decompressed data too large"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_the_first_of_several_frames_is_read_with_a_note(tmp_path: Path, format_name: str) -> None:
    if format_name not in Image.SAVE_ALL:
        pytest.skip(f"this build of Pillow cannot write {format_name}")
    frames = [Image.new("RGB", (30, 20), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    path = save(frames[0], tmp_path / "a.img", format=format_name, save_all=True, append_images=frames[1:])
    with pytest.warns(ImageNote, match=r"a\.img: first of several pages or frames read"):
        image = read_image(path)
    assert np.abs(image.astype(int) - (200, 0, 0)).max() < 12
    save(frames[0].copy(), path, format=format_name.replace("MPO", "JPEG"))
    assert read_image(path).shape == (20, 30, 3)  # without a warning


def test_damage_behind_the_first_frame_of_a_gif_does_no_harm(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture((20, 30), seed=seed)).quantize(8) for seed in range(3)]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    whole = path.read_bytes()
    expected, _ = read_image_with_notes(path)
    for length in range(len(whole) - 300, len(whole), 7):
        path.write_bytes(whole[:length])
        np.testing.assert_array_equal(read_image_with_notes(path)[0], expected)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".webp"])
def test_sizes_follow_the_orientation_in_every_format(tmp_path: Path, suffix: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(Image.fromarray(picture((4, 7))), tmp_path / f"a{suffix}", exif=exif)
        assert read_size(path) == read_image(path).shape[:2] == ((4, 7) if orientation < 5 else (7, 4))


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(Image.fromarray(picture((4, 7))), tmp_path / "a.png", exif=exif).read_bytes()
    place = turned.index(b"eXIf") - 4
    end = place + 12 + int.from_bytes(turned[place : place + 4], "big")
    (tmp_path / "a.png").write_bytes(turned[:place] + turned[end:-12] + turned[place:end] + turned[-12:])
    assert read_size(tmp_path / "a.png") == read_image(tmp_path / "a.png").shape[:2] == (7, 4)


def test_reading_in_threads_leaves_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    paths = [save(Image.fromarray(picture((40, 40), seed=k)), tmp_path / f"{k}.png") for k in range(8)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(read_image, paths * 10))) == 80
    assert warnings.filters == before


def test_the_size_limit_holds_without_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 11)
    path = save(Image.fromarray(picture((3, 4))), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: .*at most 11 pixels, found 3 x 4"):
        read_image(path)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM"])
def test_truncation_anywhere_is_an_error_that_names_the_file(tmp_path: Path, format_name: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture((40, 30))).save(buffer, format=format_name)
    whole = buffer.getvalue()
    path = tmp_path / "cut.img"
    for length in range(0, int(len(whole) * 0.95), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.img: expected"):
            read_image(path)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "TIFF", "WEBP", "GIF"])
def test_flipped_bytes_give_an_image_or_a_value_error(tmp_path: Path, format_name: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture((20, 30))).save(buffer, format=format_name)
    whole = bytearray(buffer.getvalue())
    rng = np.random.default_rng(0)
    path = tmp_path / "a.img"
    for _ in range(60):
        damaged = whole.copy()
        # Most of the ways to break a decoder are in the header.
        for position in rng.integers(0, min(len(whole), 120), 3):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):  # anything else fails the test
            assert read_image(path).dtype == np.uint8


def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match=r"a\.png: expected a readable image"):
        read_image(text)
    with pytest.raises(ValueError, match="found nothing"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="found a folder"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match=r"floating point values in \[0, 1\], found 3 to 3: divide"):
        read_image(save(Image.new("F", (2, 2), 3), tmp_path / "f.tif"))
    with pytest.raises(ValueError, match="32-bit"):
        read_image(save(Image.new("I", (2, 2), 70_000), tmp_path / "i.tif"))


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.tiff"):
        Image.fromarray(picture((2, 2))).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.tiff"]


def test_empty_or_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="found nothing"):
        list_images(tmp_path / "absent")


def test_image_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        image = Image.fromarray(picture((4, 5), seed=index))
        ImageDraw.Draw(image).point((0, 0), fill=(index, 0, 0))
        image.save(folder / f"{index}.png")
    dataset = ImageFolder(folder, limit=2)
    assert dataset.name == "photos"
    assert len(dataset) == 2
    samples = [dataset[index] for index in range(2)]
    assert [sample.image_id for sample in samples] == [1, 2]
    assert [sample.file_name for sample in samples] == ["0.png", "1.png"]
    assert [int(sample.image[0, 0, 0]) for sample in samples] == [0, 1]
    assert samples[0].instances == ()
    with pytest.raises(IndexError):
        dataset[2]


def test_image_folder_names_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    dataset = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png"):
        dataset[0]
