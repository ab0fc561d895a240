"""Paired differences: by hand, and by slower code."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from saqsam.data.rle import encode_mask
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.evaluation import Evaluation, PromptTask, Task
from saqsam.evaluation.compare import RESAMPLES, compare, mean_interval, task_difference
from saqsam.evaluation.run import evaluate_together
from saqsam.evaluation.subject import Subject
from support.tiny_quantized import quantized_tiny
from support.tiny_sam import tiny_sam

SCENES = ScenesDataset(5, size=(48, 64))
MASKS = PromptTask(keep_masks=True)


class Given(Task):
    """Values and masks that are the record itself."""

    name = "given"
    compared = "number"

    def options(self) -> dict[str, Any]:
        return {}

    def score(self, session: Any) -> dict[str, Any]:
        raise NotImplementedError

    def reduce(self, records: Any) -> dict[str, float | int | None]:
        raise NotImplementedError

    def values(self, record: dict[str, Any]) -> Mapping[str, float]:
        return record["values"]  # type: ignore[no-any-return]

    def masks(self, record: dict[str, Any]) -> Mapping[str, str]:
        return record.get("masks", {})  # type: ignore[no-any-return]


def given(*images: dict[str, Any], **metrics: float | int | None) -> Evaluation:
    records = tuple(
        {"index": place, "image_id": 10 + place, "file_name": f"{place}.png", "size": [4, 6], "given": image}
        for place, image in enumerate(images)
    )
    return Evaluation("made", len(images), {"given": {}}, {"given": metrics}, records)


def mask(columns: int) -> str:
    """Of a 4 x 6 image, the first columns."""
    filled = np.zeros((4, 6), dtype=bool)
    filled[:, :columns] = True
    text: str = encode_mask(filled)["counts"].decode()
    return text


def test_differences_by_hand() -> None:
    first = given(
        {"values": {"a": 0.9, "b": 0.5}},
        {"values": {"c": 0.4}},
        {"values": {}},
        {"values": {"d": 0.6, "e": 1}},
    )
    other = given(
        {"values": {"a": 0.8, "b": 0.5}}, {"values": {"c": 0.7}}, {"values": {}}, {"values": {"d": 0.2}}
    )
    found = task_difference(Given(), first, other)
    assert (found.task, found.compared, found.objects) == ("given", "number", 4)
    # `e` has no partner and counts in neither.
    assert found.first == pytest.approx((0.9 + 0.5 + 0.4 + 0.6) / 4)
    assert found.other == pytest.approx((0.8 + 0.5 + 0.7 + 0.2) / 4)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(found.other - found.first)
    assert [(image.file_name, image.objects) for image in found.images] == [
        ("3.png", 1),
        ("0.png", 2),
        ("1.png", 1),
    ]
    assert [image.difference for image in found.images] == pytest.approx([-0.4, -0.05, 0.3])
    assert found.agreement is None
    plain = found.to_dict()["images"][0]
    assert (plain["image_id"], plain["difference"]) == (13, pytest.approx(-0.4))


def test_masks_of_one_key_are_compared_with_each_other() -> None:
    first = given({"values": {}, "masks": {"a": mask(4), "b": mask(0), "c": mask(2), "d": mask(6)}})
    other = given({"values": {}, "masks": {"a": mask(3), "b": mask(0), "c": mask(0), "e": mask(6)}})
    found = task_difference(Given(), first, other)
    assert found.agreement is not None
    assert found.agreement.masks == 3
    assert found.agreement.iou == pytest.approx((3 / 4 + 1 + 0) / 3)  # two empty masks are equal
    assert found.agreement.share_above_90 == pytest.approx(1 / 3)
    assert (found.difference, found.first, found.images) == (None, None, ())


def test_figures_of_the_task_are_subtracted_where_both_are_measured() -> None:
    first = given({"values": {}}, ap=0.5, ap_large=None, ap_small=0.25, objects=3)
    other = given({"values": {}}, ap=0.25, ap_large=0.5, ap_small=None, objects=3)
    assert task_difference(Given(), first, other).metrics == {"ap": -0.25}


def test_images_are_drawn_whole() -> None:
    sums, counts = np.array([-1.0, 0.5, 2.0, 0.0]), np.array([4.0, 1, 2, 9])
    found = mean_interval(sums, counts, seed=5)
    assert found.mean == pytest.approx(1.5 / 16)
    random = np.random.default_rng(5)
    means = []
    for _ in range(RESAMPLES):  # one by one
        drawn = random.integers(0, 4, 4)
        means.append(sum(sums[i] for i in drawn) / sum(counts[i] for i in drawn))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))
    # Two images of many equal objects tell as much as two objects do, not as much as all of them.
    wide = mean_interval(np.array([-50.0, 50.0]), np.array([50.0, 50.0]))
    assert (wide.low, wide.high) == (-1, 1)


def test_the_interval_of_a_known_spread() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.2, 400)
    found = mean_interval(values, np.ones(400))
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.002)
    assert found.high == pytest.approx(values.mean() + half, abs=0.002)
    assert found == mean_interval(values, np.ones(400))
    assert found != mean_interval(values, np.ones(400), seed=1)


def test_one_image_has_no_interval() -> None:
    assert mean_interval(np.array([2.0]), np.array([4.0])).low is None


def test_other_images_or_options_are_refused() -> None:
    one = given({"values": {}})
    with pytest.raises(ValueError, match="the same images"):
        task_difference(Given(), one, given({"values": {}}, {"values": {}}))
    subjects = [Subject(tiny_sam(), None)]
    (box,) = evaluate_together(subjects, SCENES, [PromptTask("box")], limit=1)
    (point,) = evaluate_together(subjects, SCENES, [PromptTask("point")], limit=1)
    with pytest.raises(ValueError, match="one task prompt in both"):
        task_difference(PromptTask("box"), box, point)


def test_a_model_against_itself_and_others() -> None:
    models = (tiny_sam(), tiny_sam(), quantized_tiny())
    found = compare([Subject(model, None) for model in models], SCENES, [MASKS], limit=3)
    (same,), (changed,) = found.differences
    assert same.difference is not None
    assert (same.difference.mean, same.difference.low, same.difference.high) == (0, 0, 0)
    assert same.agreement is not None
    assert (same.agreement.iou, same.agreement.share_above_90) == (1, 1)
    assert set(same.metrics.values()) == {0.0}

    assert changed.difference is not None
    one, other = (found.evaluations[k].metrics["prompt"]["miou"] for k in (0, 2))
    assert changed.difference.mean == pytest.approx(other - one)
    assert changed.metrics["miou"] == pytest.approx(changed.difference.mean)
    losses = [image.difference for image in changed.images]
    assert losses == sorted(losses)
    assert losses != [0] * 3
    assert changed.agreement is not None
    assert changed.agreement.masks == changed.objects == found.evaluations[0].metrics["prompt"]["instances"]
    assert 0 < changed.agreement.iou < 1
    with pytest.raises(ValueError, match="at least 2"):
        compare([Subject(tiny_sam(), None)], SCENES, [MASKS])
