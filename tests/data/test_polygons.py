"""Hulls, areas and smallest rectangles, against hand-made cases and a search over angles."""

import math

import numpy as np
import pytest

from saqsam.data.polygons import convex_hull, mask_rectangle, polygon_area, smallest_rectangle
from saqsam.data.rle import decode_mask, segmentation_to_rle


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points @ turn.T


def sides(rectangle: np.ndarray | None) -> list[float]:
    """Lengths of two neighboring sides, the shorter one first."""
    assert rectangle is not None
    return sorted(np.hypot(*(rectangle[1:3] - rectangle[:2]).T).tolist())


def test_hull_of_a_square_with_points_inside_and_on_its_sides() -> None:
    hull = convex_hull([[0, 0], [4, 0], [2, 0], [4, 4], [1, 3], [0, 4], [0, 2], [4, 0]])
    assert hull.tolist() == [[0, 0], [4, 0], [4, 4], [0, 4]]
    assert polygon_area(hull) == 16
    assert polygon_area(hull[::-1]) == -16


def test_hulls_without_area() -> None:
    assert convex_hull([[3, 4], [3, 4]]).tolist() == [[3, 4]]
    assert convex_hull([[0, 0], [2, 2], [1, 1], [3, 3]]).tolist() == [[0, 0], [3, 3]]
    assert polygon_area([[3, 4]]) == polygon_area([[3, 4], [5, 6]]) == 0
    assert smallest_rectangle([[0, 0], [2, 2], [1, 1]]) is None
    assert smallest_rectangle([[7, 7]]) is None


def test_far_from_the_origin_areas_keep_their_digits() -> None:
    square = np.array([[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]) + 2.0**26
    assert polygon_area(square) == 0.25


@pytest.mark.parametrize("degrees", [0, 10, 30, 45, 77, 90, 133])
def test_the_smallest_rectangle_of_a_rotated_rectangle_is_itself(degrees: float) -> None:
    flat = np.array([[0.0, 0.0], [20.0, 0.0], [20.0, 5.0], [0.0, 5.0]])
    corners = turned(flat, degrees) + np.array([300, 200])
    rng = np.random.default_rng(int(degrees))
    weights = rng.dirichlet(np.ones(4), 50)
    found = smallest_rectangle(np.concatenate([weights @ corners, corners]))
    assert sides(found) == pytest.approx([5, 20])
    for corner in corners:
        assert np.abs(found - corner).sum(axis=1).min() < 1e-9


def test_no_angle_gives_a_smaller_rectangle() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.normal(size=(rng.integers(3, 30), 2)) * (10, 3)
        found = smallest_rectangle(points)
        assert found is not None
        area = polygon_area(found)
        assert area > 0
        searched = [np.prod(np.ptp(turned(points, angle), axis=0)) for angle in np.arange(0, 90, 0.25)]
        assert area <= min(searched) + 1e-9
        assert area == pytest.approx(min(searched), rel=0.02)
        # All points lie inside: on the left of each side, or on it.
        for start, end in zip(found, np.roll(found, -1, axis=0), strict=True):
            (dx, dy), to = end - start, points - start
            assert (dx * to[:, 1] - dy * to[:, 0]).min() > -1e-9


@pytest.mark.parametrize(("width", "height"), [(2, 1), (1, 2), (2, 2), (5, 1), (1, 9), (7, 4)])
def test_a_mask_of_w_by_h_pixels_has_a_rectangle_of_w_by_h(width: int, height: int) -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[3 : 3 + height, 11 : 11 + width] = True
    rectangle = mask_rectangle(mask)
    assert rectangle is not None
    expected = {(11, 3), (11 + width, 3), (11 + width, 3 + height), (11, 3 + height)}
    assert set(map(tuple, rectangle.tolist())) == expected  # to the last digit


@pytest.mark.parametrize(("width", "height"), [(2, 1), (1, 2)])
def test_two_pixels_are_upright_wherever_they_are(width: int, height: int) -> None:
    # The contour of two pixels has a square of the same area on its corner.
    for x in range(0, 40, 3):
        mask = np.zeros((50, 50), dtype=bool)
        mask[x // 2 : x // 2 + height, x : x + width] = True
        assert sides(mask_rectangle(mask)) == [1, 2]


def test_masks_in_parts_with_holes_and_at_the_border() -> None:
    assert mask_rectangle(np.zeros((5, 5), dtype=bool)) is None
    mask = np.zeros((10, 12), dtype=bool)
    mask[0, 0] = mask[9, 11] = mask[0, 11] = mask[9, 0] = True
    assert sides(mask_rectangle(mask)) == [10, 12]
    # The contour of pixels along a diagonal: half as wide as theirs, and half of one shorter than ten of them.
    half = math.sqrt(0.5)
    assert sides(mask_rectangle(np.eye(10, dtype=bool))) == pytest.approx([half, 19 * half])
    assert sides(mask_rectangle(np.eye(1, dtype=bool))) == pytest.approx([half, half])


def test_half_way_from_stairs_at_45_degrees() -> None:
    y, x = np.mgrid[:60, :60]
    band = (abs(x - y) <= 5) & (abs(x + y - 60) <= 20)  # centers on lines at distances of sqrt(0.5)
    # 11 and 41 lines, of which every other one has centers: half a step beyond the outermost on each side.
    step = math.sqrt(0.5)
    assert sides(mask_rectangle(band)) == pytest.approx([11 * step, 41 * step])


@pytest.mark.parametrize("degrees", [0, 15, 45, 70])
def test_a_drawn_rectangle_is_recovered_up_to_its_pixels(degrees: float) -> None:
    corners = turned(np.array([[-30.0, -8.0], [30.0, -8.0], [30.0, 8.0], [-30.0, 8.0]]), degrees) + 50
    mask = decode_mask(segmentation_to_rle([corners.ravel().tolist()], (100, 100)))
    # Stairs stand out by up to about half a pixel on each side.
    short, long = sides(mask_rectangle(mask))
    assert 16 - 0.5 <= short <= 16 + 1.1
    assert 60 - 0.5 <= long <= 60 + 1.1
