"""Compare models on the same images and prompts: paired differences, and agreement of their masks.

Objects of one image are not independent: an image that is hard for a model gives many bad masks at once. So the
bootstrap (Efron 1979) draws whole images with replacement, and a difference is the mean over all objects of the drawn
images. The 95 % confidence interval lies between the 2.5 % and 97.5 % quantiles of 10,000 draws. It covers other
images of this kind, not another seed of the quantization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saqsam.data.types import Dataset
from saqsam.evaluation.metrics.iou import rle_ious, share_above_90
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.run import WORKERS, evaluate_together
from saqsam.evaluation.subject import Subject
from saqsam.evaluation.task import Record, Task
from saqsam.utils.progress import Progress

RESAMPLES = 10_000
_DRAWS_AT_ONCE = 2**22
"""Drawn image indices held in memory at once while resampling."""


@dataclass(frozen=True)
class Interval:
    """Mean with its 95 % confidence interval.

    Attributes:
        mean: Mean.
        low: Lower end; None for fewer than two images.
        high: Upper end; None for fewer than two images.
    """

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ImageDifference:
    """Values of one image under two models.

    Attributes:
        index: Index in the dataset.
        image_id: Id of the image.
        file_name: File name of the image.
        objects: Number of objects with values under both models.
        first: Mean value of these objects under the first model.
        other: Mean value of these objects under the other model.
    """

    index: int
    image_id: int
    file_name: str
    objects: int
    first: float
    other: float

    @property
    def difference(self) -> float:
        """Mean of the other model minus that of the first: negative where the other is worse."""
        return self.other - self.first


@dataclass(frozen=True)
class Agreement:
    """Agreement of the masks of two models, regardless of the truth.

    Attributes:
        masks: Number of pairs of masks.
        iou: Mean IoU of the pairs; two empty masks are equal.
        share_above_90: Share of pairs with an IoU above 0.9.
    """

    masks: int
    iou: float
    share_above_90: float


@dataclass(frozen=True)
class TaskDifference:
    """Difference of two models in one task.

    Attributes:
        task: Name of the task.
        compared: Description of its values.
        objects: Number of objects with values under both models.
        first: Mean value of the first model over these objects.
        other: Mean value of the other model over these objects.
        difference: Value of the other model minus that of the first; None where the task has no values.
        metrics: Differences of the task's metrics, where both models have them; without intervals.
        agreement: Agreement of the masks; None where records hold none.
        images: Images with values under both models, the largest loss of the other first.
    """

    task: str
    compared: str
    objects: int
    first: float | None
    other: float | None
    difference: Interval | None
    metrics: Mapping[str, float]
    agreement: Agreement | None
    images: tuple[ImageDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as plain values."""
        content = asdict(self)
        for image, plain in zip(self.images, content["images"], strict=True):
            plain["difference"] = image.difference
        return content


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several models on one dataset.

    Attributes:
        evaluations: Evaluation of each model, in the order given.
        differences: Differences of every other model to the first, one entry per task.
    """

    evaluations: tuple[Evaluation, ...]
    differences: tuple[tuple[TaskDifference, ...], ...]


def compare(
    subjects: Sequence[Subject],
    dataset: Dataset,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    seed: int = 0,
    resume_dir: str | Path | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Comparison:
    """Score several models on the same images, each image read once, and compare all with the first.

    Args:
        subjects: Two models or more.
        dataset: Dataset to score, as for `evaluate`.
        tasks: Tasks to run. Agreement needs tasks that keep masks.
        limit: Evaluate the first `limit` images only.
        seed: Seed of the bootstrap.
        resume_dir: Folder for records, as for `evaluate_together`.
        workers: Threads that read images ahead.
        progress: Progress callback, called after each image.

    Returns:
        The comparison; without differences on other ranks than 0.

    Raises:
        ValueError: As for `evaluate`, or there are fewer than two models.
    """
    if len(subjects) < 2:
        raise ValueError(f"models: expected at least 2 to compare, got {len(subjects)}")
    first, *others = evaluations = evaluate_together(
        subjects, dataset, tasks, limit=limit, resume_dir=resume_dir, workers=workers, progress=progress
    )
    differences = tuple(
        tuple(task_difference(task, first, other, seed=seed) for task in tasks) if other.records else ()
        for other in others
    )
    return Comparison(tuple(evaluations), differences)


def task_difference(task: Task, first: Evaluation, other: Evaluation, *, seed: int = 0) -> TaskDifference:
    """Compare two evaluations of the same images in one task.

    Raises:
        ValueError: Their images or their options of the task differ.
    """
    if first.options.get(task.name) != other.options.get(task.name):
        raise ValueError(
            f"evaluations: expected one task {task.name} in both, got {first.options.get(task.name)} "
            f"and {other.options.get(task.name)}"
        )
    if [r["image_id"] for r in first.records] != [r["image_id"] for r in other.records]:
        raise ValueError("evaluations: expected the same images in both, in the same order")
    sums, images, agreements = [], [], []
    for one, two in zip(first.records, other.records, strict=True):
        agreements += _mask_ious(task, one, two)
        before, after = task.values(one[task.name]), task.values(two[task.name])
        shared = [key for key in before if key in after]
        if not shared:
            continue
        own, others = (np.array([values[key] for key in shared]) for values in (before, after))
        sums.append((own.sum(), others.sum(), len(shared)))
        images.append(
            ImageDifference(
                one["index"],
                one["image_id"],
                one["file_name"],
                len(shared),
                *map(float, (own.mean(), others.mean())),
            )
        )
    own_mean, other_mean, interval = _means(np.array(sums, dtype=np.float64).reshape(-1, 3), seed)
    return TaskDifference(
        task=task.name,
        compared=task.compared,
        objects=sum(image.objects for image in images),
        first=own_mean,
        other=other_mean,
        difference=interval,
        metrics=_metric_differences(first.metrics[task.name], other.metrics[task.name]),
        agreement=_agreement(agreements),
        images=tuple(sorted(images, key=lambda image: (image.difference, image.index))),
    )


def _means(totals: NDArray[np.float64], seed: int) -> tuple[float | None, float | None, Interval | None]:
    """Return both means and the interval of their difference from sums and counts [I, 3] of I images."""
    if not len(totals):
        return None, None, None
    first, other, count = totals.sum(0).tolist()
    return first / count, other / count, mean_interval(totals[:, 1] - totals[:, 0], totals[:, 2], seed=seed)


def mean_interval(sums: NDArray[np.float64], counts: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Return the mean over all objects with its 95 % confidence interval over draws of images.

    Args:
        sums: Sum over the objects of each image, [I].
        counts: Number of objects of each image, [I], above 0.
        seed: Seed of the draws.
    """
    mean, number = float(sums.sum() / counts.sum()), len(sums)
    if number < 2:
        return Interval(mean, None, None)
    random = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // number)
    means = []
    for start in range(0, RESAMPLES, at_once):
        drawn = random.integers(0, number, (min(at_once, RESAMPLES - start), number))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(mean, float(low), float(high))


def _mask_ious(task: Task, one: Record, two: Record) -> list[float]:
    """Compute the IoU of each mask of a record with the mask of the same key in another."""
    first, other = task.masks(one[task.name]), task.masks(two[task.name])
    return [
        1.0 if first[key] == other[key] else float(rle_ious([first[key]], [other[key]], one["size"])[0, 0])
        for key in first
        if key in other
    ]


def _agreement(ious: Sequence[float]) -> Agreement | None:
    share = share_above_90(ious)
    return None if share is None else Agreement(len(ious), float(np.mean(ious)), share)


def _metric_differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Return the differences of metrics that are not counts."""
    return {
        name: other[name] - value
        for name, value in first.items()
        if isinstance(value, float) and isinstance(other.get(name), float)
    }
