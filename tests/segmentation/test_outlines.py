"""Outlines enclose exactly the pixels of a mask."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from saqsam.segmentation.outlines import Outline, outlines


def fill(found: list[Outline], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill rings by the even-odd rule, at the middle of each pixel."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    filled = np.zeros(shape, dtype=bool)
    for one in found:
        for ring in (one.outer, *one.holes):
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if x0 == x1:
                    filled ^= (rows > min(y0, y1)) & (rows < max(y0, y1)) & (columns > x0)
    return filled


@settings(max_examples=200)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_mask_is_enclosed_exactly(mask: NDArray[np.bool_]) -> None:
    found = outlines(mask)
    np.testing.assert_array_equal(fill(found, mask.shape), mask)
    count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(found) == count - 1
    areas = [cv2.contourArea(one.outer.astype(np.float32)) for one in found]
    assert areas == sorted(areas, reverse=True)


def test_corners_are_those_of_pixels_and_no_more() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:5, 2:7] = True
    mask[2, 4] = False
    (found,) = outlines(mask)
    assert sorted(map(tuple, found.outer.tolist())) == [(2, 1), (2, 5), (7, 1), (7, 5)]
    assert cv2.contourArea(found.outer.astype(np.float32), oriented=True) == 20
    (hole,) = found.holes
    assert sorted(map(tuple, hole.tolist())) == [(4, 2), (4, 3), (5, 2), (5, 3)]
    assert cv2.contourArea(hole.astype(np.float32), oriented=True) == -1


def test_an_empty_mask_has_no_outline() -> None:
    assert outlines(np.zeros((3, 4), dtype=bool)) == []


@pytest.mark.parametrize("tolerance", [1.0, 3.0])
def test_simplified_outlines_stay_near(tolerance: float) -> None:
    rows, columns = np.mgrid[:200, :200]
    mask = (rows - 90) ** 2 + (columns - 100) ** 2 < 70**2
    (exact,), (simple,) = outlines(mask), outlines(mask, tolerance)
    assert len(simple.outer) < len(exact.outer) / 2
    near = [
        abs(cv2.pointPolygonTest(simple.outer.astype(np.float32)[:, None], (float(x), float(y)), True))
        for x, y in exact.outer
    ]
    assert max(near) <= tolerance + 1e-3


def test_a_small_object_survives_simplification() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[4, 4] = True
    (found,) = outlines(mask, 5.0)
    assert len(found.outer) == 4
