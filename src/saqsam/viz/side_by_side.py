"""Draw the masks of two models side by side, from the records of their evaluations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from saqsam.data.rle import decode_mask, rle_from_text
from saqsam.data.types import Dataset, Sample
from saqsam.evaluation.compare import TaskDifference
from saqsam.evaluation.metrics.iou import differing_pixels
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.task import Record, Task
from saqsam.viz.comparison_picture import ComparisonRow, comparison_picture

MOST_MASKS = 8
"""Masks drawn per image; with more of them a picture becomes unreadable."""


def median_and_worst(difference: TaskDifference) -> dict[int, str]:
    """Choose the image of the median change and the two of the largest losses.

    Returns:
        The caption of each image by its index in the dataset.
    """
    order = [image.index for image in difference.images]
    median = order[len(order) // 2]
    chosen = {median: "median image"}
    for index, name in zip([i for i in order if i != median], ("worst image", "second worst"), strict=False):
        chosen[index] = name
    return chosen


def draw_side_by_side(
    dataset: Dataset,
    task: Task,
    difference: TaskDifference,
    first: Evaluation,
    other: Evaluation,
    chosen: Mapping[int, str],
    *,
    names: tuple[str, str] = ("float", "quantized"),
) -> NDArray[np.uint8]:
    """Draw image, masks of each model and their difference, one row per image.

    Args:
        dataset: Dataset that both models were scored on.
        task: Task that keeps masks.
        difference: Difference of the two models in this task.
        first: Evaluation of the first model.
        other: Evaluation of the other model, on the same images.
        chosen: Caption of each image to draw, by its index in the dataset.
        names: Names of the two models.

    Returns:
        HWC uint8 RGB.
    """
    changes = {image.index: image.difference for image in difference.images}
    rows = []
    for index, name in chosen.items():
        caption = f"{name}: its mean {task.unit} changes by {changes[index]:+z.3f}"
        rows.append(
            image_row(dataset[index], task, first.records[index], other.records[index], caption=caption)
        )
    return comparison_picture(rows, titles=("image and prompts", *names, "difference"), names=names)


def image_row(
    sample: Sample, task: Task, first: Record, other: Record, *, caption: str = "", most: int = MOST_MASKS
) -> ComparisonRow:
    """Return the row of one image, with those `most` common masks of two records that differ in most pixels."""
    size = first["size"]
    own, others = task.masks(first[task.name]), task.masks(other[task.name])
    common = [key for key in own if key in others]
    drawn = set(sorted(common, key=lambda key: -differing_pixels(own[key], others[key], size))[:most])
    keys = [key for key in common if key in drawn]
    boxes = [i.box for i in sample.instances if str(i.id) in keys] if task.has_box_prompts else []
    return ComparisonRow(
        sample.image,
        np.array(boxes),
        _masks([own[key] for key in keys], size),
        _masks([others[key] for key in keys], size),
        caption,
    )


def _masks(counts: list[str], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode P masks of one size as [P, H, W] bool."""
    masks = [decode_mask(rle_from_text(c, size)) for c in counts]
    return np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)
