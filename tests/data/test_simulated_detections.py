"""Simulated boxes: close to the ground truth, reproducible, and with scores that rank them only roughly."""

import itertools

import numpy as np
import pytest

from saqsam.data.boxes import box_ious
from saqsam.data.rle import encode_mask
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.simulated_detections import SimulatedDetections
from saqsam.data.types import Instance, Sample


def sample(
    image_id: int, *boxes: tuple[float, float, float, float], size: tuple[int, int] = (200, 300)
) -> Sample:
    rle = encode_mask(np.ones(size, dtype=bool))
    instances = tuple(Instance(number, rle, box, number) for number, box in enumerate(boxes, start=1))
    return Sample(image_id, "made", np.zeros((*size, 3), dtype=np.uint8), instances)


BOXES = tuple((20.0 * n, 10.0, 20.0 * n + 15, 30.0) for n in range(10))


def test_an_image_has_its_own_stream() -> None:
    detector = SimulatedDetections()
    first, again = detector.of(sample(5, *BOXES)), SimulatedDetections().of(sample(5, *BOXES))
    other = detector.of(sample(6, *BOXES))
    reseeded = SimulatedDetections(seed=1).of(sample(5, *BOXES))
    assert first is not None
    for name in ("boxes", "scores", "category_ids"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert other is not None
    assert reseeded is not None
    assert not np.array_equal(first.scores, other.scores)
    assert not np.array_equal(first.scores, reseeded.scores)
    assert detector.of(sample(-3, *BOXES)) is not None
    assert (first.boxes.dtype, first.category_ids.dtype) == (np.float64, np.int64)


def test_without_jitter_and_false_boxes_only_true_boxes_remain() -> None:
    found = SimulatedDetections(jitter=0, false_share=0).of(sample(1, *BOXES))
    assert found is not None
    by_category = dict(zip(found.category_ids.tolist(), map(tuple, found.boxes.tolist()), strict=True))
    assert by_category == dict(enumerate(BOXES, start=1))


def test_jitter_is_a_fraction_of_the_side() -> None:
    wide = tuple((100.0 * n + 25, 40.0, 100.0 * n + 75, 140.0) for n in range(9))
    detector = SimulatedDetections(jitter=0.05, false_share=0)
    moves = []
    for image_id in range(100):
        found = detector.of(sample(image_id, *wide, size=(200, 1000)))
        assert found is not None
        moves.append(found.boxes[np.argsort(found.category_ids)] - wide)
    spread = np.concatenate(moves).std(axis=0)
    assert spread == pytest.approx([2.5, 5, 2.5, 5], rel=0.1)


def test_three_false_boxes_to_ten_true_ones_away_from_them() -> None:
    detector = SimulatedDetections(jitter=0)
    false, true, scores = 0, 0, {True: [], False: []}
    for image_id in range(200):
        shown = sample(image_id, *BOXES[:3])
        found = detector.of(shown)
        assert found is not None
        for box, score in zip(found.boxes, found.scores, strict=True):
            is_true = tuple(box.tolist()) in BOXES
            scores[is_true].append(float(score))
            true, false = true + is_true, false + (not is_true)
            if not is_true:
                assert box_ious(box, np.array(BOXES[:3])).max() < 0.3
        assert found.boxes.min() >= 0
        assert (found.boxes <= (300, 200, 300, 200)).all()
    assert true == 600
    assert false == pytest.approx(180, abs=40)  # 0.9 an image, drawn
    assert all(0 <= score <= 1 for kind in scores.values() for score in kind)
    assert np.mean(scores[True]) == pytest.approx(5 / 8, abs=0.03)
    assert np.mean(scores[False]) == pytest.approx(3 / 8, abs=0.04)
    above = [t > f for t, f in itertools.product(scores[True], scores[False])]
    assert np.mean(above) == pytest.approx(0.86, abs=0.04)


def test_small_boxes_boxes_at_the_border_and_full_images_stay_usable() -> None:
    shown = sample(1, (0, 0, 1, 1), (299, 199, 300, 200), (-5, -5, 305, 205), (10, 10, 10.5, 12))
    for seed in range(50):
        found = SimulatedDetections(jitter=0.5, false_share=3, seed=seed).of(shown)
        assert found is not None
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert found.boxes.min() >= 0
        assert (found.boxes <= (300, 200, 300, 200)).all()


def test_crowds_and_images_without_objects_give_none() -> None:
    assert SimulatedDetections().of(sample(1)) is None
    (instance,) = sample(1, BOXES[0]).instances
    crowd = Instance(1, instance.rle, instance.box, 1, is_crowd=True)
    shown = Sample(1, "made", np.zeros((200, 300, 3), dtype=np.uint8), (crowd,))
    assert SimulatedDetections().of(shown) is None


def test_options() -> None:
    assert SimulatedDetections().digest == "simulated (seed 0, jitter 0.05, false 0.3)"
    assert SimulatedDetections(seed=1).digest != SimulatedDetections().digest
    for wrong in ({"jitter": -0.1}, {"false_share": float("nan")}, {"seed": -1}, {"jitter": float("inf")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a finite number of at least 0"):
            SimulatedDetections(**wrong)


def test_scenes_have_detections_of_their_classes() -> None:
    scene = ScenesDataset(1)[0]
    found = SimulatedDetections().of(scene)
    assert found is not None
    assert set(found.category_ids.tolist()) == {instance.category_id for instance in scene.instances}
