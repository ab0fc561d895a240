"""A picture of what quantization changed, on the images that tell it best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from transformers import SamModel, SamProcessor

from saqsam.data.datasets import Dataset, Sample
from saqsam.evaluate import Evaluation
from saqsam.predictor import Predictor
from saqsam.visualize import Comparison, comparison_picture

MOST_BOXES = 8
"""Objects drawn of one image: with more of them a picture cannot be read."""


def change_by_image(before: Evaluation, after: Evaluation) -> dict[int, float]:
    """Change of the mean IoU of each image that has scores, by image id."""
    changes: dict[int, list[float]] = {}
    for old, new in zip(before.scores, after.scores, strict=True):
        assert old.instance_id == new.instance_id
        changes.setdefault(old.image_id, []).append(new.iou - old.iou)
    return {image_id: float(np.mean(values)) for image_id, values in changes.items()}


def choose_images(changes: dict[int, float]) -> dict[int, str]:
    """The image of the median change and the two of the largest losses, by id, with what each stands for."""
    order = sorted(changes, key=lambda image_id: (changes[image_id], image_id))
    median = order[len(order) // 2]
    chosen = {median: "median image"}
    for image_id, name in zip(
        [i for i in order if i != median], ("worst image", "second worst"), strict=False
    ):
        chosen[image_id] = name
    return chosen


def draw_comparison(
    float_model: SamModel,
    quantized: SamModel,
    processor: SamProcessor,
    dataset: Dataset,
    before: Evaluation,
    after: Evaluation,
) -> NDArray[np.uint8]:
    """Draw image, float masks, quantized masks and their difference, for the images of `choose_images`.

    Args:
        float_model: The float model.
        quantized: The quantized one, reloaded from disk.
        processor: Of both.
        dataset: What both were scored on.
        before: Scores of the float model, with box prompts.
        after: Scores of the quantized one, with the same prompts.

    Returns:
        HWC uint8 RGB.
    """
    changes = change_by_image(before, after)
    wanted = choose_images(changes)
    samples: dict[int, Sample] = {}
    for index in range(before.images):
        sample = dataset[index]
        if sample.image_id in wanted:
            samples[sample.image_id] = sample
        if len(samples) == len(wanted):
            break
    rows = []
    for image_id, name in wanted.items():
        image = samples[image_id].image
        boxes = np.array([i.box for i in samples[image_id].instances if not i.is_crowd][:MOST_BOXES])
        rows.append(
            Comparison(
                image,
                boxes,
                _masks(Predictor(float_model, processor), image, boxes),
                _masks(Predictor(quantized, processor), image, boxes),
                f"{name}: its mean IoU changes by {changes[image_id]:+.3f}",
            )
        )
    return comparison_picture(rows)


def _masks(predictor: Predictor, image: NDArray[np.uint8], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    predictor.set_image(image)
    masks, _, _ = predictor.predict_batch(boxes=boxes, multimask_output=False)
    found: NDArray[np.bool_] = masks[:, 0].cpu().numpy()
    return found
