"""Overlays blend each mask in its color, outline it, and change nothing in place."""

import numpy as np
import pytest

from saqsam.viz.overlays import PALETTE, overlay_masks
from support.coco_folder import picture


def squares() -> np.ndarray:
    masks = np.zeros((2, 60, 80), dtype=bool)
    masks[0, 10:30, 10:30] = masks[1, 30:50, 40:70] = True
    return masks


def test_overlay_blends_inside_outlines_and_leaves_the_rest() -> None:
    image = picture((60, 80))
    before = image.copy()
    result = overlay_masks(image, squares(), alpha=0.25)
    np.testing.assert_array_equal(image, before)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    expected = np.rint(0.75 * image[20, 20] + 0.25 * np.array(PALETTE[0]))
    np.testing.assert_array_equal(result[20, 20], expected)
    for pixel, color in ((result[10, 20], PALETTE[0]), (result[30, 55], PALETTE[1])):
        # Outlines are anti-aliased: nearly, not exactly, their color.
        np.testing.assert_allclose(pixel, color, atol=32)
    np.testing.assert_array_equal(result[:8], image[:8])


def test_overlay_of_nothing_is_the_image() -> None:
    image = picture((6, 8))
    np.testing.assert_array_equal(overlay_masks(image, np.zeros((0, 6, 8), dtype=bool)), image)
    np.testing.assert_array_equal(overlay_masks(image, np.zeros((2, 6, 8), dtype=bool)), image)


def test_overlay_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match=r"expected \[P, 60, 80\], got \(2, 80, 60\)"):
        overlay_masks(picture((60, 80)), np.zeros((2, 80, 60), dtype=bool))
    with pytest.raises(ValueError, match="at least one"):
        overlay_masks(picture((60, 80)), squares(), colors=[])
