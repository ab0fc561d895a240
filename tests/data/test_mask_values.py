"""Values of mask files: two values, soft edges, compression losses, ignore labels, and refused label maps."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw, ImageFilter

from saqsam.data.mask_values import MaskFile, UnclearMask, interpret_mask, read_channels

SIZE = (60, 80)


def regions(*values: int) -> np.ndarray:
    """HW uint16: a background of the first value and a square of 12 px of each other one, apart from another."""
    map_ = np.full((20, 20 * len(values)), values[0], dtype=np.uint16)
    for place, value in enumerate(values):
        map_[4:16, 20 * place + 4 : 20 * place + 16] = value
    return map_


def disc(radius: int = 20) -> Image.Image:
    """A white disc on black, with a hard edge."""
    image = Image.new("L", SIZE[::-1], 0)
    ImageDraw.Draw(image).ellipse([40 - radius, 30 - radius, 40 + radius, 30 + radius], fill=255)
    return image


def interpret(values: Any, name: str = "m.png", **options: Any) -> MaskFile:
    return interpret_mask(name, np.asarray(values)[..., None], **options)


def through(image: Image.Image, folder: Path, name: str, **options: Any) -> MaskFile:
    image.save(folder / name, **options)
    return interpret_mask(folder / name, read_channels(folder / name))


@given(value=st.integers(1, 65535))
def test_background_and_any_other_value_are_a_mask(value: int) -> None:
    found = interpret(regions(0, value))
    np.testing.assert_array_equal(found.mask, regions(0, 1) == 1)
    assert found.ignored is None
    is_white = 230 <= value <= 255 or value >= 58982
    assert found.object_value == (255 if is_white else value)


@given(label=st.sampled_from([255, 65535]), has_background=st.booleans())
def test_zero_one_and_the_largest_value_have_an_ignore_label(label: int, has_background: bool) -> None:
    values = regions(0, 1, label)
    if not has_background:
        values[values == 0] = label
    found = interpret(values)
    np.testing.assert_array_equal(found.mask, values == 1)
    np.testing.assert_array_equal(found.ignored, values == label)
    assert (found.object_value, found.ignore_value) == (1, label)


@given(
    classes=st.sets(st.integers(1, 25), min_size=1, max_size=25),
    has_background=st.booleans(),
    has_ignore=st.booleans(),
)
def test_maps_of_up_to_25_classes_are_refused(
    classes: set[int], has_background: bool, has_ignore: bool
) -> None:
    values = [0] * has_background + sorted(classes) + [255] * has_ignore
    if len(classes) == 1 and (not has_ignore or classes == {1}):
        return  # one object
    with pytest.raises(ValueError, match=r"m\.png: expected a mask of two values, got \d+ different ones"):
        interpret(regions(*values))


@given(values=st.sets(st.integers(8, 247), min_size=2, max_size=20))
def test_maps_of_any_labels_are_refused(values: set[int]) -> None:
    with pytest.raises(ValueError, match="label maps are not masks"):
        interpret(regions(0, *sorted(values)))


@given(
    seed=st.integers(0, 1000),
    values=st.sampled_from([(7, 18, 255), (0, 1, 2), (1, 2), (0, 10, 255), (0, 128, 255), (100, 200)]),
)
def test_scattered_labels_are_refused(seed: int, values: tuple[int, ...]) -> None:
    scattered = np.random.default_rng(seed).choice(values, size=SIZE).astype(np.uint8)
    with pytest.raises(ValueError, match="expected a mask of two values"):
        interpret(scattered)


@settings(max_examples=40)
@given(
    quality=st.integers(30, 100),
    corners=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 59)), min_size=3, max_size=5, unique=True),
    mode=st.sampled_from(["L", "RGB"]),
)
def test_jpeg_losses_belong_to_a_mask(quality: int, corners: list[tuple[int, int]], mode: str) -> None:
    image = Image.new("L", SIZE[::-1], 0)
    ImageDraw.Draw(image).polygon(corners, fill=255, outline=255, width=2)
    content = io.BytesIO()
    image.convert(mode).save(content, "JPEG", quality=quality)
    with Image.open(content) as read:
        channels = np.asarray(read)
    found = interpret_mask("m.jpg", channels if channels.ndim == 3 else channels[..., None])
    exact = np.asarray(image) > 0
    assert (found.mask & exact).sum() >= 0.9 * (found.mask | exact).sum()
    assert found.ignored is None


@pytest.mark.parametrize("quality", [30, 60, 75, 90, 95])
def test_losses_in_a_lossless_copy(tmp_path: Path, quality: int) -> None:
    disc().save(tmp_path / "m.jpg", quality=quality)
    with Image.open(tmp_path / "m.jpg") as lossy:
        found = through(lossy, tmp_path, "copy.png")
    exact = np.asarray(disc()) > 0
    assert (found.mask != exact).mean() < 0.01


@settings(max_examples=30)
@given(radius=st.floats(0.5, 2.0), scale=st.sampled_from([2, 4, 8]))
def test_soft_edges_belong_to_a_mask(radius: float, scale: int) -> None:
    blurred = disc().filter(ImageFilter.GaussianBlur(radius))
    enlarged = disc().resize((80 * scale, 60 * scale), Image.Resampling.BICUBIC)
    for soft in (blurred, enlarged, disc().resize((40, 30), Image.Resampling.BOX)):
        values = np.asarray(soft)
        np.testing.assert_array_equal(interpret(values).mask, values >= (int(values.max()) + 1) // 2)


def test_single_pixels_of_one_may_be_losses() -> None:
    values = np.asarray(disc()).copy()
    values[2, 3] = values[50, 70] = 1
    with pytest.raises(UnclearMask, match=r"got 0, 1 and 255: .*--ignore-label"):
        interpret(values)
    np.testing.assert_array_equal(interpret(values, ignore_label=None).mask, values == 255)
    np.testing.assert_array_equal(interpret(values, ignore_label=255).mask, values == 1)
    np.testing.assert_array_equal(interpret(values, "m.jpg").mask, values == 255)


def test_label_maps_in_jpeg(tmp_path: Path) -> None:
    with_border = np.zeros((120, 160), dtype=np.uint8)
    with_border[20:100, 20:140] = 255
    with_border[25:95, 25:135] = 1
    classes = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((50, 50))).astype(np.uint8)
    for values in (with_border, classes):
        Image.fromarray(values).save(tmp_path / "m.jpg", quality=95)
        with pytest.raises(ValueError, match="label maps are not masks"):
            interpret_mask(tmp_path / "m.jpg", read_channels(tmp_path / "m.jpg"))


@given(label=st.integers(0, 255))
def test_an_explicit_ignore_label(label: int) -> None:
    value = 40 if label != 40 else 41
    values = regions(0, value, label) if label else regions(0, value)
    found = interpret(values, ignore_label=label)
    np.testing.assert_array_equal(found.mask, values == value)
    np.testing.assert_array_equal(found.ignored, values == label)


@given(value=st.integers(8, 247), width=st.integers(2, 5))
def test_trimaps_need_an_ignore_label(value: int, width: int) -> None:
    values = np.zeros(SIZE, dtype=np.uint8)
    values[20 - width : 40 + width, 20 - width : 60 + width] = value
    values[20:40, 20:60] = 255
    with pytest.raises(ValueError, match="got 3 different ones up to 255"):
        interpret(values)
    found = interpret(values, ignore_label=value)
    np.testing.assert_array_equal(found.mask, values == 255)
    np.testing.assert_array_equal(found.ignored, values == value)


def test_no_ignore_label() -> None:
    with pytest.raises(ValueError, match="got 3 different ones up to 255"):
        interpret(regions(0, 1, 255), ignore_label=None)
    assert interpret(regions(0, 255), ignore_label=None).ignored is None
    assert interpret(regions(0, 255), ignore_label=7).ignored is None


def test_palettes(tmp_path: Path) -> None:
    def with_palette(values: np.ndarray, colors: dict[int, tuple[int, int, int]]) -> Image.Image:
        image = Image.fromarray(values.astype(np.uint8), mode="L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([channel for k in range(256) for channel in colors.get(k, (0, 0, 0))])
        return image

    voc = {1: (128, 0, 0), 7: (128, 128, 128), 15: (192, 128, 128), 255: (224, 224, 192)}
    found = through(with_palette(regions(0, 1, 255), voc), tmp_path, "voc.png")
    np.testing.assert_array_equal(found.ignored, regions(0, 1, 255) == 255)
    np.testing.assert_array_equal(found.mask, regions(0, 1, 255) == 1)
    assert through(with_palette(regions(0, 7), voc), tmp_path, "bus.png").object_value == 7
    with pytest.raises(ValueError, match="got 4 different ones up to 255"):
        through(with_palette(regions(0, 7, 15, 255), voc), tmp_path, "classes.png")
    # White first: the index says nothing about what is the object.
    inverted = with_palette(regions(1, 0), {0: (255, 255, 255)})
    for name in ("a.gif", "a.png"):
        np.testing.assert_array_equal(through(inverted, tmp_path, name).mask, regions(0, 1) == 1)


def test_colored_objects_and_maps_of_colors(tmp_path: Path) -> None:
    labels = regions(0, 1, 2)
    for color in ((255, 0, 0), (224, 224, 192), (255, 128, 10), (9, 0, 0)):
        image = Image.fromarray(np.array([(0, 0, 0), color, (0, 0, 0)], dtype=np.uint8)[labels])
        np.testing.assert_array_equal(through(image, tmp_path, "one.png").mask, labels == 1)
    for colors in (
        [(0, 0, 0), (128, 0, 0), (0, 128, 0)],
        [(0, 0, 0), (128, 0, 0), (224, 224, 192)],
        [(0, 0, 255), (255, 0, 0), (255, 0, 0)],
        [(255, 255, 255), (255, 0, 0), (255, 0, 0)],
    ):
        with pytest.raises(ValueError, match="expected a mask of one object color on black"):
            through(Image.fromarray(np.array(colors, dtype=np.uint8)[labels]), tmp_path, "map.png")


def test_alpha_is_the_mask_if_the_color_is_constant(tmp_path: Path) -> None:
    shown = np.asarray(disc())
    for color in (0, 255):
        rgba = np.dstack([np.full((*SIZE, 3), color, dtype=np.uint8), shown])
        for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")):
            np.testing.assert_array_equal(through(image, tmp_path, "a.png").mask, shown > 0)
    both = Image.fromarray(np.dstack([shown] * 4))
    np.testing.assert_array_equal(through(both, tmp_path, "both.png").mask, shown > 0)
    contrary = Image.fromarray(np.dstack([255 - shown] * 3 + [shown]))
    with pytest.raises(ValueError, match="several colors"):
        through(contrary, tmp_path, "contrary.png")


def test_one_bit_sixteen_bits_and_floats(tmp_path: Path) -> None:
    exact = np.asarray(disc()) > 0
    assert through(disc().convert("1"), tmp_path, "1.png").object_value == 255
    for values in (exact * np.float32(1), exact * np.float32(255), exact.astype(np.uint16) * 65535):
        np.testing.assert_array_equal(through(Image.fromarray(values), tmp_path, "m.tif").mask, exact)
    for values in (exact * np.float32(0.5), exact * np.float32("nan"), exact.astype(np.int32) * 70000):
        with pytest.raises(ValueError, match=r"m\.tif: expected a mask with integers of 8 or 16 bits"):
            through(Image.fromarray(values), tmp_path, "m.tif")


def test_empty_and_full_masks() -> None:
    empty = interpret(np.zeros(SIZE, dtype=np.uint8))
    assert (empty.mask.any(), empty.object_value) == (False, None)
    for value in (1, 255):
        assert interpret(np.full(SIZE, value, dtype=np.uint8)).mask.all()
    noisy = np.random.default_rng(0).choice([253, 254, 255], size=SIZE).astype(np.uint8)
    assert interpret(noisy, "full.jpg").mask.all()


def test_photographs_are_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    ramp = np.tile(np.linspace(0, 255, SIZE[1]), (SIZE[0], 1)).astype(np.uint8)
    for values in (noise, ramp, cv2.GaussianBlur(noise, (9, 9), 2), np.minimum(noise, 120)):
        with pytest.raises(ValueError, match="expected a mask of two values"):
            interpret(values)


@settings(max_examples=200)
@given(
    channels=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.float32]),
        st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 4)),
        elements=st.integers(0, 255),
        fill=st.sampled_from([0, 1, 255]),
    ),
    name=st.sampled_from(["m.png", "m.jpg"]),
    ignore_label=st.sampled_from(["auto", None, 0, 1, 128, 255]),
)
def test_any_values_are_a_mask_or_refused(channels: np.ndarray, name: str, ignore_label: Any) -> None:
    message = ""
    try:
        found = interpret_mask(name, channels, ignore_label)
    except ValueError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{name}: expected a mask")
        return
    assert found.mask.shape == channels.shape[:2]
    if found.ignored is not None:
        assert not (found.mask & found.ignored).any()
        assert found.ignored.any()
    if found.object_value is not None:
        assert found.mask.any()
