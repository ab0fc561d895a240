import numpy as np
import pytest

from saqsam.data.rle import encode_mask
from saqsam.evaluation import PromptTask, evaluate
from saqsam.evaluation.compare import ImageDifference, TaskDifference, task_difference
from saqsam.viz.side_by_side import draw_side_by_side, image_row, median_and_worst
from support.tiny_quantized import quantized_tiny, tiny_data
from support.tiny_sam import tiny_processor, tiny_sam


def of_images(changes: dict[int, float]) -> TaskDifference:
    images = [ImageDifference(index, index, "", 1, 0.5, 0.5 + change) for index, change in changes.items()]
    images.sort(key=lambda image: (image.difference, image.index))
    return TaskDifference("prompt", "", 1, None, None, None, {}, None, tuple(images))


def test_the_median_image_and_the_worst_are_chosen() -> None:
    assert list(median_and_worst(of_images({1: 0.1, 2: -0.5, 3: -0.1, 4: -0.2, 5: 0.0}))) == [3, 2, 4]
    assert list(median_and_worst(of_images({7: 0.0}))) == [7]
    assert list(median_and_worst(of_images({7: 0.0, 8: 0.0}))) == [8, 7]


def test_the_picture_has_a_row_for_each_chosen_image_and_shows_the_masks_of_the_records() -> None:
    data, processor = tiny_data(count=4), tiny_processor()
    task = PromptTask(keep_masks=True)
    scores = [evaluate(model, processor, data, tasks=[task]) for model in (tiny_sam(), quantized_tiny())]
    difference = task_difference(task, *scores)
    one = draw_side_by_side(data, task, difference, *scores, {1: "one"})
    three = draw_side_by_side(data, task, difference, *scores, median_and_worst(difference))
    assert one.dtype == three.dtype == np.uint8
    assert one.shape[1:] == three.shape[1:]
    assert three.shape[0] > 2 * one.shape[0]

    row = image_row(data[1], task, scores[0].records[1], scores[1].records[1])
    truth = {instance.id: instance.mask() for instance in data[1].instances}
    assert row.float_masks.shape == row.quantized_masks.shape == (len(np.asarray(row.boxes)), 48, 64)
    for mask, found in zip(row.float_masks, scores[0].records[1]["prompt"]["instances"], strict=False):
        both = (mask & truth[found["id"]]).sum() / (mask | truth[found["id"]]).sum()
        assert both == pytest.approx(found["iou"])


def test_of_many_masks_those_that_differ_most_are_drawn_in_their_order() -> None:
    data, task = tiny_data(count=1), PromptTask(keep_masks=True)
    (size,) = {data[0].image.shape[:2]}

    def record(widths: list[int]) -> dict[str, object]:
        masks = [np.arange(size[1]) < width for width in widths]
        counts = [encode_mask(np.broadcast_to(m, size).copy())["counts"].decode() for m in masks]
        found = [{"id": k, "mask": c} for k, c in enumerate(counts)]
        return {"size": list(size), "prompt": {"instances": found}}

    row = image_row(data[0], task, record([20, 10, 4]), record([17, 10, 3]), most=2)
    assert [int(mask[0].sum()) for mask in row.quantized_masks] == [17, 3]
