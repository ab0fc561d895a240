"""Comparison pictures: sizes, and differences in the color of the model that they belong to."""

import numpy as np
import pytest

from saqsam.viz.comparison_picture import ONLY_FLOAT, ONLY_QUANTIZED, ComparisonRow, comparison_picture
from saqsam.viz.overlays import PALETTE
from support.coco_folder import picture


def squares() -> np.ndarray:
    masks = np.zeros((2, 60, 80), dtype=bool)
    masks[0, 10:30, 10:30] = masks[1, 30:50, 40:70] = True
    return masks


def has(image: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((image == color).all(axis=2).any())


def row(quantized: np.ndarray, caption: str = "") -> ComparisonRow:
    gray = np.full((60, 80, 3), 90, dtype=np.uint8)
    return ComparisonRow(gray, [[10, 10, 30, 30], [40, 30, 70, 50]], squares(), quantized, caption, [[5, 5]])


def without_legend(drawn: np.ndarray) -> np.ndarray:
    return drawn[:-40]


def test_equal_masks_have_no_difference() -> None:
    drawn = without_legend(comparison_picture([row(squares())]))
    assert not has(drawn[:, 3 * 310 :], ONLY_FLOAT)
    assert not has(drawn[:, 3 * 310 :], ONLY_QUANTIZED)


def test_each_direction_of_a_difference_has_its_color() -> None:
    smaller, larger = squares(), squares()
    smaller[0, 10:15] = False
    larger[1, 50:58, 40:70] = True
    for quantized, color, other in (
        (smaller, ONLY_FLOAT, ONLY_QUANTIZED),
        (larger, ONLY_QUANTIZED, ONLY_FLOAT),
    ):
        difference = without_legend(comparison_picture([row(quantized)]))[:, 3 * 310 :]
        assert has(difference, color)
        assert not has(difference, other)


def test_differences_are_per_prompt_even_where_the_unions_agree() -> None:
    swapped = squares()[::-1].copy()
    difference = without_legend(comparison_picture([row(swapped)]))[:, 3 * 310 :]
    assert has(difference, ONLY_FLOAT) or has(difference, ONLY_QUANTIZED)


def test_layout() -> None:
    one = comparison_picture([row(squares())], cell_width=200)
    assert one.dtype == np.uint8
    assert one.shape[1] == 4 * 210 + 10
    assert one.shape[0] > 150
    captioned = comparison_picture([row(squares(), "mean IoU 0.9")], cell_width=200)
    assert captioned.shape[0] > one.shape[0]
    assert comparison_picture([row(squares())] * 3, cell_width=200).shape[0] > 3 * 150


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (400, 100)])
def test_images_of_any_shape_and_no_prompt(size: tuple[int, int]) -> None:
    masks = np.zeros((0, *size), dtype=bool)
    drawn = comparison_picture([ComparisonRow(picture(size), [], masks, masks)], cell_width=100)
    assert drawn.shape[1] == 4 * 110 + 10
    assert drawn.shape[0] < 400


def test_boxes_over_the_border_are_drawn_along_it() -> None:
    masks = np.zeros((1, 60, 80), dtype=bool)
    black = np.zeros((60, 80, 3), dtype=np.uint8)
    drawn = comparison_picture([ComparisonRow(black, [[-20, -20, 200, 200]], masks, masks)], cell_width=80)
    assert has(drawn[:, :90], PALETTE[0])


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        comparison_picture([])
    with pytest.raises(ValueError, match="at least 80 px, got 10"):
        comparison_picture([row(squares())], cell_width=10)
    with pytest.raises(ValueError, match="expected two of"):
        comparison_picture([row(squares()[:1])])
