"""COCO mask AP on made masks whose figures are known."""

from typing import Any

import numpy as np
import pytest

from saqsam.data.rle import encode_mask
from saqsam.data.types import Instance
from saqsam.evaluation.metrics.coco_ap import MaskAP

SIZE = (60, 60)


def square(x: int, y: int, side: int = 20) -> dict[str, Any]:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + side, x : x + side] = True
    return encode_mask(mask)


def instance(number: int, rle: dict[str, Any], category: int = 1, crowd: bool = False) -> Instance:
    return Instance(number, rle, (0.0, 0.0, 1.0, 1.0), category, crowd)


def test_perfect_masks() -> None:
    metric = MaskAP()
    # Instance id 0 must count like any other.
    metric.update(5, SIZE, [instance(0, square(0, 0)), instance(1, square(30, 30), 2)], [], [], [])
    assert metric.compute()["segm_ap"] == 0.0
    metric.reset()
    truth = [instance(0, square(0, 0)), instance(1, square(30, 30), 2)]
    metric.update(5, SIZE, truth, [square(0, 0), square(30, 30)], [0.5, 0.4], [1, 2])
    figures = metric.compute()
    for name in ("segm_ap", "segm_ap50", "segm_ap_small", "segm_ap_agnostic"):
        assert figures[name] == pytest.approx(1)
    assert figures["segm_ap_large"] is None
    assert figures["segm_ar100_agnostic"] == pytest.approx(1)


def test_iou_thresholds() -> None:
    metric = MaskAP()
    # 20 x 20 against 20 x 16 of it: IoU 0.8, right at 0.50, 0.55, ..., 0.80, wrong at three thresholds.
    mask = np.zeros(SIZE, dtype=bool)
    mask[:20, :16] = True
    metric.update(1, SIZE, [instance(1, square(0, 0))], [encode_mask(mask)], [1.0], [1])
    figures = metric.compute()
    assert figures["segm_ap"] == pytest.approx(0.7)
    assert figures["segm_ap50"] == figures["segm_ap75"] == pytest.approx(1)


def test_wrong_class_counts_only_without_classes() -> None:
    metric = MaskAP()
    metric.update(1, SIZE, [instance(1, square(0, 0), category=1)], [square(0, 0)], [1.0], [2])
    figures = metric.compute()
    assert figures["segm_ap"] == 0.0
    assert figures["segm_ap_agnostic"] == pytest.approx(1)


def test_scores_decide_the_order() -> None:
    def ap(good: float, bad: float) -> float | None:
        metric = MaskAP()
        truth = [instance(1, square(0, 0))]
        metric.update(1, SIZE, truth, [square(0, 0), square(40, 40)], [good, bad], [1, 1])
        return metric.compute()["segm_ap"]

    assert ap(0.9, 0.1) == pytest.approx(1)
    assert ap(0.1, 0.9) == pytest.approx(0.5)


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    metric = MaskAP()
    truth = [instance(1, square(0, 0)), instance(2, square(30, 30, 30), crowd=True)]
    masks = [square(0, 0), square(32, 32, 10), square(45, 45, 10)]
    metric.update(1, SIZE, truth, masks, [0.5, 0.9, 0.8], [1, 1, 1])
    assert metric.compute()["segm_ap"] == pytest.approx(1)


def test_images_without_detections_or_objects_count() -> None:
    metric = MaskAP()
    metric.update(1, SIZE, [instance(1, square(0, 0))], [square(0, 0)], [0.5], [1])
    metric.update(2, SIZE, [instance(2, square(0, 0))], [], [], [])
    assert metric.compute()["segm_ap"] == pytest.approx(0.5, abs=0.01)
    metric.update(3, SIZE, [], [square(0, 0)], [0.9], [1])  # a false alarm, ahead of the right one
    assert metric.compute()["segm_ap"] == pytest.approx(0.25, abs=0.01)


def test_nothing_to_find_and_nothing_printed(capsys: pytest.CaptureFixture[str]) -> None:
    metric = MaskAP()
    metric.update(1, SIZE, [], [], [], [])
    assert set(metric.compute().values()) == {None}
    assert capsys.readouterr().out == ""


# ---- LVIS; compared once with its own code on random data, all figures equal to the last digit


def federated(
    incomplete: tuple[int, ...], scores: list[float], **frequencies: str
) -> dict[str, float | None]:
    """One object of class 1, found, and a mask elsewhere of the same class."""
    metric = MaskAP()
    truth = [instance(1, square(0, 0))]
    metric.update(1, SIZE, truth, [square(0, 0), square(40, 40)], scores, [1, 1], incomplete)
    return metric.compute_federated({1: frequencies.get("one", "f"), 2: "r"})


def test_masks_of_an_incomplete_class_are_no_errors_elsewhere() -> None:
    assert federated((), [0.1, 0.9])["segm_ap"] == pytest.approx(0.5)
    assert federated((1,), [0.1, 0.9])["segm_ap"] == pytest.approx(1)
    assert federated((2,), [0.1, 0.9])["segm_ap"] == pytest.approx(0.5)
    # What matches an object is right, complete or not.
    assert federated((1,), [0.9, 0.1])["segm_ap50"] == pytest.approx(1)


def test_classes_by_how_frequent_they_are() -> None:
    figures = federated((), [0.9, 0.1], one="c")
    assert figures["segm_ap_common"] == figures["segm_ap_small"] == pytest.approx(1)
    assert [figures[f"segm_ap_{name}"] for name in ("rare", "frequent", "large")] == [None] * 3


def test_three_hundred_masks_of_all_classes_count() -> None:
    metric = MaskAP()
    many = [square(40, 40)] * 300
    metric.update(
        1, SIZE, [instance(1, square(0, 0))], [*many, square(0, 0)], [0.5] * 300 + [0.1], [2] * 300 + [1]
    )
    assert metric.compute_federated({1: "f"})["segm_ap"] == 0.0
    metric.reset()
    metric.update(
        1, SIZE, [instance(1, square(0, 0))], [*many[1:], square(0, 0)], [0.5] * 299 + [0.1], [2] * 299 + [1]
    )
    assert metric.compute_federated({1: "f"})["segm_ap"] == pytest.approx(1)
