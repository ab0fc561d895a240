"""The interior point and prompts made from instances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from saqsam.data.rle import encode_mask
from saqsam.data.types import Instance
from saqsam.evaluation.simulated_prompts import box_prompts, interior_point, next_click, point_prompts


def test_the_center_of_a_square() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 10:15] = True
    assert interior_point(mask) == (12, 6)


def test_the_border_of_the_image_is_an_edge() -> None:
    # Without that, every pixel of a mask that fills the image would be equally deep.
    assert interior_point(np.ones((7, 7), dtype=bool)) == (3, 3)
    mask = np.zeros((9, 20), dtype=bool)
    mask[:, :5] = True
    assert interior_point(mask)[0] == 2


def test_rings_and_single_pixels() -> None:
    mask = np.zeros((3, 4), dtype=bool)
    mask[2, 3] = True
    assert interior_point(mask) == (3, 2)
    ring = np.ones((11, 11), dtype=bool)
    ring[4:7, 4:7] = False
    x, y = interior_point(ring)
    assert ring[y, x]


def test_empty_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        interior_point(np.zeros((3, 4), dtype=bool))


@settings(max_examples=60)
@given(mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_no_pixel_is_deeper(mask: np.ndarray) -> None:
    if not mask.any():
        return
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded)

    def depth(y: int, x: int) -> float:
        return float(np.sqrt(((outside - (y + 1, x + 1)) ** 2).sum(axis=1)).min())

    x, y = interior_point(mask)
    assert mask[y, x]
    assert depth(y, x) == pytest.approx(max(depth(*pixel) for pixel in np.argwhere(mask)), abs=1e-5)


def test_prompts_of_instances() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 10:15] = True
    instance = Instance(1, encode_mask(mask), (10.0, 4.0, 15.0, 9.0), 1)
    np.testing.assert_array_equal(box_prompts([instance] * 2), [[10, 4, 15, 9]] * 2)
    points, labels = point_prompts([instance] * 2)
    np.testing.assert_array_equal(points, [[[12, 6]]] * 2)
    np.testing.assert_array_equal(labels, [[1], [1]])
    assert box_prompts([]).shape == (0, 4)


def test_the_next_click_is_where_the_largest_error_is() -> None:
    truth = np.zeros((40, 40), dtype=bool)
    truth[5:25, 5:25] = True
    predicted = np.zeros_like(truth)
    assert next_click(predicted, truth) == (interior_point(truth), 1)
    predicted[5:25, 5:20] = True  # five columns are missing
    predicted[30:36, 30:36] = True  # and 36 pixels too much
    assert next_click(predicted, truth) == ((22, 7), 1)
    predicted[5:25, 20:25] = True
    assert next_click(predicted, truth) == ((32, 32), 0)
    predicted[30:36, 30:36] = False
    assert next_click(predicted, truth) is None


def test_errors_of_both_kinds_that_touch_are_two_regions() -> None:
    truth = np.zeros((20, 20), dtype=bool)
    truth[5:10, 5:15] = True
    predicted = np.zeros_like(truth)
    predicted[10:15, 5:14] = True  # right below: 45 pixels too much, 50 missing
    point, label = next_click(predicted, truth) or ((0, 0), -1)
    assert label == 1
    assert truth[point[1], point[0]]
