"""`ResizeLongestSide` against the official transform, and its errors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saqsam.inference.processing import preprocess
from saqsam.inference.transforms import ResizeLongestSide
from support.coco_folder import picture
from support.tiny_sam import IMAGE_SIZE, tiny_processor
from support.torchvision_stub import import_segment_anything

import_segment_anything()
from segment_anything.utils.transforms import ResizeLongestSide as Official  # noqa: E402

SIZES = [(48, 80), (90, 31), (64, 64), (7, 5), (2000, 1500)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [64, 1024])
def test_coordinates_are_those_of_the_official_transform(size: tuple[int, int], length: int) -> None:
    ours, official = ResizeLongestSide(length), Official(length)
    rng = np.random.default_rng(0)
    points, boxes = rng.uniform(0, 100, (5, 3, 2)), rng.uniform(0, 100, (4, 4))
    np.testing.assert_array_equal(ours.apply_coords(points, size), official.apply_coords(points, size))
    np.testing.assert_array_equal(ours.apply_boxes(boxes, size), official.apply_boxes(boxes, size))
    for dtype in (torch.float64, torch.float32, torch.int64):
        given_points, given_boxes = torch.tensor(points).to(dtype), torch.tensor(boxes).to(dtype)
        before = given_boxes.clone()
        for one, other in (
            (ours.apply_coords_torch(given_points, size), official.apply_coords_torch(given_points, size)),
            (ours.apply_boxes_torch(given_boxes, size), official.apply_boxes_torch(given_boxes, size)),
        ):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)
        assert torch.equal(given_boxes, before)


@pytest.mark.parametrize("size", SIZES)
def test_images_are_those_of_the_official_transform(size: tuple[int, int]) -> None:
    image = picture(size)
    np.testing.assert_array_equal(ResizeLongestSide(64).apply_image(image), Official(64).apply_image(image))
    np.testing.assert_array_equal(
        ResizeLongestSide(64).apply_image(Image.fromarray(image)), Official(64).apply_image(image)
    )


def test_a_batch_of_images_is_resized_by_its_last_two_axes() -> None:
    image = torch.from_numpy(picture((48, 80))).permute(2, 0, 1)[None].float()
    resized = ResizeLongestSide(64).apply_image_torch(image)
    assert (resized.shape, resized.dtype) == ((1, 3, 38, 64), torch.float32)
    exact = torch.from_numpy(ResizeLongestSide(64).apply_image(picture((48, 80)))).permute(2, 0, 1)
    assert (resized[0] - exact).abs().max() < 1  # Pillow rounds to integers


@given(st.integers(1, 10_000), st.integers(1, 3))
def test_thin_images_keep_one_pixel_as_in_preprocessing(long: int, short: int) -> None:
    transform = ResizeLongestSide(IMAGE_SIZE)
    for size in ((long, short), (short, long)):
        expected = preprocess(tiny_processor(), np.zeros((*size, 3), np.uint8))[1]
        assert transform.get_preprocess_shape(*size, IMAGE_SIZE) == expected
        assert transform.apply_image(np.zeros((*size, 3), np.uint8)).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.apply_coords([[1, 2, 3]], (4, 5)), r"coords: expected x, y in the last axis, got .*3"),
        (lambda t: t.apply_coords(7, (4, 5)), "coords: expected x, y"),
        (lambda t: t.apply_coords_torch(torch.zeros(2, 3), (4, 5)), "coords: expected x, y"),
        (lambda t: t.apply_boxes([[1, 2]], (4, 5)), "boxes: expected x0, y0, x1, y1"),
        (lambda t: t.apply_boxes_torch(torch.zeros(2, 2), (4, 5)), "boxes: expected x0, y0, x1, y1"),
        (lambda t: t.apply_boxes([1, 2, 3, 4], (4, 5, 3)), r"original_size: expected \(height, width\)"),
        (lambda t: t.apply_boxes([1, 2, 3, 4], (0, 5)), r"original_size: expected \(height, width\)"),
        (lambda t: t.apply_image(None), "image: expected an array"),
        (lambda t: t.apply_image_torch(torch.zeros(3, 4, 5)), r"expected floats of shape \[B, C, H, W\]"),
        (lambda t: t.apply_image_torch(torch.zeros(1, 3, 4, 5).byte()), "expected floats"),
        (lambda t: ResizeLongestSide(0), "target_length: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(ResizeLongestSide(64))
