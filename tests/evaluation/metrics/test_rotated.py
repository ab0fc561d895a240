"""IoU of convex polygons: hand cases, pixels, and OpenCV's float32 intersections."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saqsam.data.polygons import Polygon, convex_hull, polygon_area
from saqsam.evaluation.metrics.rotated import intersection_areas, polygon_ious, shares_inside


def box(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    return convex_hull([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def oriented(x: float, y: float, width: float, height: float, degrees: float) -> Polygon:
    angle = math.radians(degrees)
    along = np.array([math.cos(angle), math.sin(angle)]) * width / 2
    across = np.array([-math.sin(angle), math.cos(angle)]) * height / 2
    center = np.array([x, y])
    return np.array([center + s * along + t * across for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))])


def test_axis_aligned_boxes() -> None:
    one = box(0, 0, 4, 4)
    others = [one, box(2, 0, 6, 4), box(4, 0, 8, 4), box(9, 9, 10, 10), box(1, 1, 3, 3), box(4, 4, 5, 5)]
    assert polygon_ious([one], others).tolist() == [[1, 8 / 24, 0, 0, 4 / 16, 0]]
    assert shares_inside([one, others[4]], [one, others[4]]).tolist() == [[1, 0.25], [1, 1]]


def test_turned_squares() -> None:
    square, diamond = oriented(5, 5, 2, 2, 0), oriented(5, 5, 2, 2, 45)
    # The regular octagon: 8 (sqrt(2) - 1) for an inscribed circle of radius 1.
    shared = 8 * (math.sqrt(2) - 1)
    assert intersection_areas([square], [diamond])[0, 0] == pytest.approx(shared, rel=1e-12)
    assert polygon_ious([square], [diamond])[0, 0] == pytest.approx(shared / (8 - shared), rel=1e-12)
    # A cross of two bars of 10 x 2.
    assert polygon_ious([oriented(0, 0, 10, 2, 30)], [oriented(0, 0, 10, 2, 120)])[0, 0] == pytest.approx(
        4 / 36
    )


def test_triangles_general_quadrilaterals_and_nothing() -> None:
    triangle = convex_hull([[0, 0], [4, 0], [0, 4]])
    assert polygon_ious([triangle], [box(0, 0, 2, 2)])[0, 0] == pytest.approx(4 / 8)
    kite = convex_hull([[0, 0], [4, 1], [6, 6], [1, 4]])
    assert polygon_ious([kite], [kite])[0, 0] == 1
    line = convex_hull([[0, 0], [4, 4]])
    assert polygon_ious([line], [line, kite]).tolist() == [[0, 0]]
    assert polygon_ious([], [kite]).shape == (0, 1)
    assert polygon_ious([kite], []).shape == (1, 0)


def test_touching_sides_and_a_corner_inside() -> None:
    base = oriented(100, 100, 20, 10, 33)
    along = (base[1] - base[0]) / 20
    assert polygon_ious([base], [base + 20 * along])[0, 0] == pytest.approx(0, abs=1e-12)
    assert polygon_ious([base], [base + 10 * along])[0, 0] == pytest.approx(1 / 3, rel=1e-9)


boxes = st.tuples(
    *(st.floats(-20, 20) for _ in range(2)), *(st.floats(0.5, 30) for _ in range(2)), st.floats(0, 180)
)


@settings(max_examples=200)
@given(boxes, boxes)
def test_iou_is_symmetric_bounded_and_one_with_itself(
    one: tuple[float, ...], other: tuple[float, ...]
) -> None:
    a, b = oriented(*one), oriented(*other)
    iou = polygon_ious([a, b], [a, b])
    assert iou[0, 1] == pytest.approx(iou[1, 0], abs=1e-9)
    assert (iou >= 0).all()
    assert (iou <= 1).all()
    assert np.diag(iou) == pytest.approx([1, 1], abs=1e-9)
    moved = polygon_ious([a + 5000], [b + 5000])[0, 0]
    assert moved == pytest.approx(iou[0, 1], abs=1e-6)


def covered(polygon: Polygon, points: np.ndarray) -> np.ndarray:
    """Which points [N, 2] lie inside."""
    inside = np.ones(len(points), dtype=bool)
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        (dx, dy), to = end - start, points - start
        inside &= dx * to[:, 1] - dy * to[:, 0] >= 0
    return inside


def test_against_points_of_a_fine_grid_and_opencv() -> None:
    rng = np.random.default_rng(1)
    step = 0.02
    axis = np.arange(-6, 6, step) + step / 2
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for _ in range(40):
        pair = []
        for _ in range(2):
            hull = convex_hull(rng.uniform(-4, 4, (rng.integers(3, 7), 2)))
            pair.append(hull)
        one, other = pair
        shared = intersection_areas([one], [other])[0, 0]
        counted = (covered(one, grid) & covered(other, grid)).sum() * step**2
        assert shared == pytest.approx(counted, abs=0.05)
        assert polygon_area(one) == pytest.approx(covered(one, grid).sum() * step**2, abs=0.05)
        drawn, _ = cv2.intersectConvexConvex(one.astype(np.float32), other.astype(np.float32))
        assert shared == pytest.approx(drawn, abs=1e-3)
