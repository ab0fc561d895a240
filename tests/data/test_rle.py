"""Masks in all of COCO's forms, and damaged ones, which must not reach pycocotools."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from saqsam.data.rle import decode_mask, encode_mask, segmentation_to_rle
from support.coco_folder import compressed, uncompressed

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(max_examples=60)
@given(mask=masks)
def test_every_run_length_form_gives_the_mask_back(mask: np.ndarray) -> None:
    for segmentation in (compressed(mask), uncompressed(mask), encode_mask(mask)):
        rle = segmentation_to_rle(segmentation, mask.shape)
        assert isinstance(rle["counts"], bytes)
        assert rle["size"] == list(mask.shape)
        np.testing.assert_array_equal(decode_mask(rle), mask)


def test_long_runs_survive() -> None:
    # Runs of many digits, rising and falling, use the differences and the sign of the compressed form.
    mask = np.zeros((500, 400), dtype=bool)
    mask[:, 3:5] = mask[:, 100:300] = mask[7:9, 350:] = True
    np.testing.assert_array_equal(decode_mask(segmentation_to_rle(compressed(mask), mask.shape)), mask)


def test_polygons_are_merged() -> None:
    squares = [[1, 1, 4, 1, 4, 4, 1, 4], [6.0, 6.0, 9.0, 6.0, 9.0, 9.0, 6.0, 9.0]]
    mask = decode_mask(segmentation_to_rle(squares, (10, 12)))
    assert mask.shape == (10, 12)
    assert mask[2, 2]
    assert mask[7, 7]
    assert not mask[5, 5]


GOOD = compressed(np.eye(4, dtype=bool))


COUNTS = "expected counts as a string or a list of integers of at least 0"
CORNERS = "expected at least three corners x, y"


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "expected polygons or run lengths, got list"),
        ("text", "expected polygons or run lengths, got str"),
        (5, "expected polygons or run lengths, got int"),
        ({"size": [4, 4]}, COUNTS),
        ({"size": [4], "counts": "01"}, "expected size [height, width], got [4]"),
        ({"size": [4, -4], "counts": [16]}, "expected size [height, width], got [4, -4]"),
        ({"size": [4, 4], "counts": 16}, COUNTS),
        ({"size": [4, 4], "counts": [3, 2]}, "expected 4 x 4 pixels in all, got 5"),
        ({"size": [4, 4], "counts": [3, 20]}, "expected 4 x 4 pixels in all, got 23"),
        ({"size": [4, 4], "counts": [-3, 19]}, COUNTS),
        ({"size": [4, 4], "counts": [3.5, 12.5]}, COUNTS),
        ({"size": [4, 4], "counts": ""}, "expected 4 x 4 pixels in all"),
        ({"size": [4, 4], "counts": "01"}, "expected 4 x 4 pixels in all"),
        ({"size": [4, 4], "counts": "`"}, "expected a whole number at the end of the compressed counts"),
        ({"size": [4, 4], "counts": "zzzzz"}, "expected compressed counts, got other characters"),
        ({"size": [4, 4], "counts": "ooooooooooo0"}, "expected at most 8 characters a number, got 12"),
        ({"size": [4, 4], "counts": "00\u00e90"}, "expected compressed counts, got other characters"),
        ({"size": [4, 4], "counts": b"\xff\xff"}, "expected compressed counts, got other characters"),
        ({"size": [4, 5], "counts": GOOD["counts"]}, "expected 4 x 5 pixels in all"),
        ({"size": [4, 4], "counts": GOOD["counts"][:-1]}, "expected 4 x 4 pixels in all"),
        ([[1, 2, 3, 4]], CORNERS),
        ([[1, 2, 3, 4, 5, 6, 7]], CORNERS),
        (["abcdef"], CORNERS),
        ([[0, 0, 1, 1, 2, float("nan")]], "expected finite numbers"),
        ([[0, 0, 3, 0, float("inf"), 3]], "expected finite numbers"),
        ([[0, 0, 1e12, 0, 1e12, 3]], "expected corners near the image of 4 x 4"),
    ],
)
def test_damaged_masks_are_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        segmentation_to_rle(segmentation, (4, 4))
