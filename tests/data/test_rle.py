"""Masks in all of COCO's forms, and damaged ones, which must not reach pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from saqsam.data.rle import decode_mask, encode_mask, segmentation_to_rle
from support.coco_folder import compressed, uncompressed

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(deadline=None, max_examples=60)
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


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        "text",
        5,
        {"size": [4, 4]},
        {"size": [4], "counts": "01"},
        {"size": [4, -4], "counts": [16]},
        {"size": [4, 4], "counts": 16},
        {"size": [4, 4], "counts": [3, 2]},
        {"size": [4, 4], "counts": [3, 20]},
        {"size": [4, 4], "counts": [-3, 19]},
        {"size": [4, 4], "counts": [3.5, 12.5]},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "01"},
        {"size": [4, 4], "counts": "`"},
        {"size": [4, 4], "counts": "zzzzz"},
        {"size": [4, 4], "counts": "ooooooooooo0"},
        {"size": [4, 4], "counts": "00\u00e90"},
        {"size": [4, 4], "counts": b"\xff\xff"},
        {"size": [4, 5], "counts": GOOD["counts"]},
        {"size": [4, 4], "counts": GOOD["counts"][:-1]},
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        ["abcdef"],
        [[0, 0, 1, 1, 2, float("nan")]],
        [[0, 0, 3, 0, float("inf"), 3]],
        [[0, 0, 1e12, 0, 1e12, 3]],
    ],
)
def test_damaged_masks_are_refused(segmentation: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        segmentation_to_rle(segmentation, (4, 4))
