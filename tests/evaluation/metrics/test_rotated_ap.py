"""AP of oriented boxes: hand-computed cases, a second implementation, and COCO's own on boxes that are not turned."""

import contextlib
import io
import itertools
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from saqsam.data.polygons import Polygon, convex_hull
from saqsam.evaluation.metrics.rotated import polygon_ious
from saqsam.evaluation.metrics.rotated_ap import (
    THRESHOLDS,
    OrientedDetection,
    OrientedTruth,
    RotatedAP,
    average_precision,
)


def box(x: float, y: float, width: float = 10, height: float = 10) -> Polygon:
    return convex_hull([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])


def found(polygon: Polygon | None, score: float, category: int = 1) -> OrientedDetection:
    return OrientedDetection(polygon, category, score)


def true(
    polygon: Polygon, category: int = 1, *, difficult: bool = False, crowd: bool = False
) -> OrientedTruth:
    return OrientedTruth(polygon, category, difficult, crowd)


def figures(*images: tuple[list[OrientedDetection], list[OrientedTruth]]) -> dict[str, float | None]:
    metric = RotatedAP()
    for detections, truth in images:
        metric.update(detections, truth)
    return metric.compute()


def test_two_areas_under_one_curve() -> None:
    # Right, wrong, right of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then nothing.
    area, eleven = average_precision(np.array([1, 0, 1], dtype=np.int8), 3)
    assert area == pytest.approx((1 + 2 / 3) / 3)
    assert eleven == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # recalls 0 to 0.3, 0.4 to 0.6
    # What is ignored might as well not be there.
    again = average_precision(np.array([-1, 1, 0, -1, 1, -1], dtype=np.int8), 3)
    assert again == (area, eleven)
    assert average_precision(np.array([], dtype=np.int8), 3) == (0, 0)
    assert average_precision(np.array([0, -1], dtype=np.int8), 3) == (0, 0)
    # A recall of exactly 3/10 counts.
    assert average_precision(np.ones(3, dtype=np.int8), 10) == pytest.approx((0.3, 4 / 11))


def test_perfect_and_missing() -> None:
    truth = [true(box(0, 0)), true(box(50, 0))]
    perfect = figures(([found(box(0, 0), 0.2), found(box(50, 0), 0.1)], truth))
    assert set(perfect.values()) == {1}
    assert set(figures(([], truth)).values()) == {0}
    assert set(figures(([found(box(0, 0), 0.9)], [])).values()) == {None}
    half = figures(([found(box(0, 0), 0.2)], truth))
    assert half["rotated_ap50"] == 0.5
    assert half["rotated_ap50_07"] == pytest.approx(6 / 11)


def test_thresholds_are_exceeded_not_met() -> None:
    # IoU 0.8 exactly: above 0.50, ..., 0.75 but not above 0.80.
    at_80 = figures(([found(box(0, 0, 8), 1.0)], [true(box(0, 0))]))
    assert at_80["rotated_ap"] == pytest.approx(0.6)
    assert at_80["rotated_ap50"] == at_80["rotated_ap75"] == 1
    assert figures(([found(box(0, 0, 5), 1.0)], [true(box(0, 0))]))["rotated_ap50"] == 0


def test_turned_boxes_are_told_apart() -> None:
    bar = np.array([[0.0, 0.0], [40.0, 0.0], [40.0, 4.0], [0.0, 4.0]])
    angle = math.radians(20)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = (bar - (20, 2)) @ turn.T + (20, 2)
    assert figures(([found(turned, 1.0)], [true(turned)]))["rotated_ap"] == 1
    assert figures(([found(bar, 1.0)], [true(turned)]))["rotated_ap50"] == 0


def test_a_second_detection_of_an_object_is_wrong() -> None:
    truth = [true(box(0, 0)), true(box(50, 0))]
    detections = [found(box(0, 0), 0.9), found(box(1, 0), 0.8), found(box(50, 0), 0.7)]
    assert figures((detections, truth))["rotated_ap50"] == pytest.approx((1 + 2 / 3) / 2)


def test_a_detection_belongs_to_the_object_it_meets_most_even_if_that_is_taken() -> None:
    # The second detection has IoU 9/11 with the first object and 6/14 with the other, which it is not offered.
    truth = [true(box(0, 0)), true(box(5, 0))]
    detections = [found(box(0, 0), 0.9), found(box(1, 0), 0.8)]
    assert figures((detections, truth))["rotated_ap50"] == 0.5


def test_difficult_objects_are_neither_missed_nor_found() -> None:
    truth = [true(box(0, 0)), true(box(50, 0), difficult=True)]
    right = found(box(0, 0), 0.5)
    assert figures(([right], truth))["rotated_ap50"] == 1
    # Two detections of the difficult one, both before the right one.
    hits = [found(box(50, 0), 0.9), found(box(51, 0), 0.8)]
    assert figures(([*hits, right], truth))["rotated_ap50"] == 1
    # At IoU 9/11 the second of them is wrong above 0.85 alone.
    assert figures(([*hits, right], truth))["rotated_ap"] == pytest.approx((7 * 1 + 3 * 0.5) / 10)
    assert figures(([right], [true(box(50, 0), difficult=True)]))["rotated_ap"] is None


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    truth = [true(box(0, 0)), true(box(100, 0, 100, 100), crowd=True)]
    inside = [found(box(110 + 20 * n, 5), 0.9) for n in range(3)]
    right = found(box(0, 0), 0.5)
    assert figures(([*inside, right], truth))["rotated_ap"] == 1
    assert figures(([found(box(300, 0), 0.9), right], truth))["rotated_ap50"] == 0.5
    assert figures(([found(box(110, 5), 0.9, category=2), right], truth))["rotated_ap50_agnostic"] == 1


def test_empty_masks_are_wrong() -> None:
    truth = [true(box(0, 0))]
    assert figures(([found(None, 0.9), found(box(0, 0), 0.5)], truth))["rotated_ap50"] == 0.5
    assert figures(([found(None, 0.1), found(box(0, 0), 0.5)], truth))["rotated_ap50"] == 1
    assert figures(([found(None, 0.1)], truth))["rotated_ap50"] == 0


def test_classes_weigh_the_same_and_those_only_found_do_not_count() -> None:
    truth = [true(box(0, 0), 1), true(box(50, 0), 2), true(box(100, 0), 2)]
    detections = [found(box(0, 0), 0.9, 1), found(box(50, 0), 0.8, 2), found(box(100, 0), 0.7, 3)]
    metric = RotatedAP()
    metric.update(detections, truth)
    assert {category: one["rotated_ap50"] for category, one in metric.by_class().items()} == {1: 1, 2: 0.5}
    assert metric.compute()["rotated_ap50"] == 0.75
    assert metric.compute()["rotated_ap50_agnostic"] == 1


def test_scores_rank_over_all_images_and_equal_ones_keep_their_order() -> None:
    right, wrong = found(box(0, 0), 0.5), found(box(80, 80), 0.5)
    truth = [true(box(0, 0))]
    assert figures(([right], truth), ([wrong], []))["rotated_ap50"] == 1
    assert figures(([wrong], []), ([right], truth))["rotated_ap50"] == 0.5
    assert figures(([found(box(80, 80), 0.4)], []), ([right], truth))["rotated_ap50"] == 1
    # Half of very many: first all right ones, or first all wrong ones.
    many = [true(box(20 * n, 0)) for n in range(200)]
    hits, misses = [found(one.polygon, 0.5) for one in many], [wrong] * 200
    others = [found(box(0, 50), 0.1 + 0.001 * n) for n in range(200)]
    assert figures(([*hits, *misses, *others], many))["rotated_ap50"] == 1
    first_misses = [n / (200 + n) for n in range(1, 201)]
    assert figures(([*misses, *hits, *others], many))["rotated_ap50"] == pytest.approx(max(first_misses))


def naive(
    images: list[tuple[list[OrientedDetection], list[OrientedTruth]]], category: int, least: float
) -> float:
    """The all-point area by its definition: detections one by one, then a sum over all recalls."""
    ranked = sorted(
        ((one.score, number, one) for number, (some, _) in enumerate(images) for one in some),
        key=lambda entry: -entry[0],
    )
    used: set[tuple[int, int]] = set()
    curve = [(0, 0)]  # right and wrong so far
    objects = sum(one.category_id == category and one.counts for _, truth in images for one in truth)
    for _, number, one in ranked:
        if one.category_id != category:
            continue
        truth = [(place, t) for place, t in enumerate(images[number][1]) if t.category_id == category]
        overlaps = [(float(polygon_ious([one.polygon], [t.polygon])[0, 0]), place, t) for place, t in truth]
        iou, place, best = max(overlaps, key=lambda entry: entry[0], default=(0.0, -1, None))
        right, wrong = curve[-1]
        if best is None or iou <= least or ((number, place) in used and not best.is_difficult):
            curve.append((right, wrong + 1))
        elif not best.is_difficult:
            used.add((number, place))
            curve.append((right + 1, wrong))
    area = 0.0
    for wanted in range(1, objects + 1):
        area += max((r / (r + w) for r, w in curve[1:] if r >= wanted), default=0.0) / objects
    return area


def test_against_a_second_implementation() -> None:
    rng = np.random.default_rng(3)

    def polygon() -> Polygon:
        x, y, width, height = rng.uniform((0, 0, 10, 10), (40, 40, 30, 30))
        angle = rng.uniform(0, math.pi)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ turn.T + (x, y)

    images = []
    for _ in range(6):
        truth = [true(polygon(), int(rng.integers(1, 3)), difficult=rng.random() < 0.2) for _ in range(8)]
        near = [
            found(one.polygon + rng.normal(0, 1.5, 2), rng.random(), one.category_id)
            for one in truth
            for _ in range(2)
        ]
        false = [found(polygon(), rng.random(), int(rng.integers(1, 3))) for _ in range(6)]
        images.append(([*near, *false], truth))
    expected = {
        (category, least): naive(images, category, least)
        for category, least in itertools.product((1, 2), THRESHOLDS)
    }
    result = figures(*images)
    assert 0.2 < expected[1, 0.5] < 0.95  # the case is neither empty nor trivial
    assert result["rotated_ap50"] == pytest.approx((expected[1, 0.5] + expected[2, 0.5]) / 2)
    assert result["rotated_ap"] == pytest.approx(np.mean(list(expected.values())))


def test_against_coco_on_boxes_that_are_not_turned() -> None:
    """Objects far apart, so that both ways of matching agree; COCO's mean has 101 recalls, 0 one of them."""
    rng = np.random.default_rng(4)
    metric, truth, detections = RotatedAP(), [], []
    for image_id in range(1, 11):
        boxes = [box(60 * n, 0, *rng.uniform(15, 30, 2)) for n in range(10)]
        off = [one + rng.normal(0, 2, 2) for one in boxes] + [box(60 * n, 200) for n in range(5)]
        scores = rng.random(15)
        metric.update(
            [found(one, score) for one, score in zip(off, scores, strict=True)], [true(o) for o in boxes]
        )
        for one, score in zip(off, scores, strict=True):
            low, side = one.min(axis=0), np.ptp(one, axis=0)
            detections.append({"image_id": image_id, "bbox": [*low, *side], "score": score})
        for one in boxes:
            low, side = one.min(axis=0), np.ptp(one, axis=0)
            truth.append({"image_id": image_id, "bbox": [*low, *side], "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for entries in (truth, detections):
            coco = COCO()
            for number, entry in enumerate(entries, start=1):
                entry |= {"id": number, "category_id": 1, "area": entry["bbox"][2] * entry["bbox"][3]}
            images = [{"id": n, "height": 300, "width": 700} for n in range(1, 11)]
            coco.dataset = {"images": images, "annotations": entries, "categories": [{"id": 1}]}
            coco.createIndex()
            sets.append(coco)
        evaluation = COCOeval(*sets, iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    result = metric.compute()
    assert result["rotated_ap"] == pytest.approx(evaluation.stats[0], abs=0.008)
    assert result["rotated_ap50"] == pytest.approx(evaluation.stats[1], abs=0.008)
    assert result["rotated_ap75"] == pytest.approx(evaluation.stats[2], abs=0.008)
    assert 0.2 < evaluation.stats[0] < 0.9
