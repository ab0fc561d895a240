import numpy as np
import pytest

from saqsam.comparison import change_by_image, choose_images, draw_comparison
from saqsam.evaluate import Evaluation, evaluate
from tiny_quantized import quantized_tiny, tiny_data
from tiny_sam import tiny_processor, tiny_sam


def evaluation(scores: list[tuple[int, int, float]]) -> Evaluation:
    records = tuple(
        {"image_id": image, "prompt": {"instances": [{"id": instance, "iou": iou, "predicted_iou": 0.5}]}}
        for image, instance, iou in scores
    )
    return Evaluation("data", 3, {}, {}, records)


def test_changes_are_means_over_the_objects_of_an_image() -> None:
    before = evaluation([(1, 1, 0.5), (1, 2, 0.7), (4, 3, 0.2)])
    after = evaluation([(1, 1, 0.4), (1, 2, 0.4), (4, 3, 0.3)])
    assert change_by_image(before, after) == pytest.approx({1: -0.2, 4: 0.1})


def test_the_median_image_and_the_worst_are_chosen() -> None:
    changes = {1: 0.1, 2: -0.5, 3: -0.1, 4: -0.2, 5: 0.0}
    assert list(choose_images(changes)) == [3, 2, 4]
    assert list(choose_images({7: 0.0})) == [7]
    assert list(choose_images({7: 0.0, 8: 0.0})) == [8, 7]


def test_the_picture_has_a_row_for_each_chosen_image() -> None:
    data, processor = tiny_data(count=4), tiny_processor()
    models = (tiny_sam(), quantized_tiny())
    scores = [evaluate(model, processor, data, limit=1) for model in models]
    one = draw_comparison(*models, processor, data, *scores)
    scores = [evaluate(model, processor, data) for model in models]
    three = draw_comparison(*models, processor, data, *scores)
    assert one.dtype == three.dtype == np.uint8
    assert one.shape[1:] == three.shape[1:]
    assert three.shape[0] > 2 * one.shape[0]
