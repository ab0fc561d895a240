"""The box-fill baseline: the IoU of the prompt box itself, used as the mask."""

from __future__ import annotations

import torch

from saqsam.data.types import Dataset
from saqsam.evaluation.metrics.iou import MeanIoU, clear_ignored, fill_box, mask_iou
from saqsam.evaluation.run import count_images
from saqsam.evaluation.skipped import CROWD, nothing_to_score, sum_skipped
from saqsam.evaluation.tasks.prompt import BELOW_MIN_AREA


def box_fill_iou(dataset: Dataset, *, limit: int | None = None, min_area: int = 0) -> float:
    """Return the mean IoU of the box-fill baseline, which a useful model scores above with box prompts.

    Args:
        dataset: Dataset with objects.
        limit: Evaluate the first `limit` images only.
        min_area: Skip instances with fewer pixels.

    Raises:
        ValueError: There is no instance to score, or `limit` is below 1.
    """
    mean_iou = MeanIoU()
    skipped = sum_skipped(dataset, (), ())
    count = count_images(dataset, limit)
    for index in range(count):
        sample = dataset[index]
        skipped.update(sample.skipped)
        for instance in sample.instances:
            if instance.is_crowd or instance.area < min_area:
                skipped[CROWD if instance.is_crowd else BELOW_MIN_AREA] += 1
                continue
            filled = torch.from_numpy(fill_box(instance.box, sample.image.shape[:2]))[None]
            filled = clear_ignored(filled, sample.counted())
            mean_iou.update(mask_iou(filled, torch.from_numpy(instance.mask())[None]))
    if not len(mean_iou):
        raise ValueError(nothing_to_score(dataset, count, skipped))
    return mean_iou.compute()
