"""Models beside each other on the same images and prompts: paired differences, and how alike their masks are.

Objects of one image are not independent: a picture that one model finds hard gives many bad masks at once. So the
bootstrap (Efron 1979) draws whole images, with replacement, and a difference is the mean over all objects of the images
that were drawn. Intervals are the 2.5 % and 97.5 % quantiles of 10,000 such draws. They say how sure a difference is
for other images of this kind, not for another seed of the quantization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saqsam.data.types import Dataset
from saqsam.evaluation.metrics.iou import rle_ious
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.run import WORKERS, Subject, evaluate_together
from saqsam.evaluation.task import Record, Task
from saqsam.utils.progress import Progress

RESAMPLES = 10_000
GOOD_IOU = 0.9
_DRAWS_AT_ONCE = 2**22
"""Numbers of images held at once while resampling."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval.

    Attributes:
        mean: The mean.
        low: Lower end; None where there are fewer than two images to draw from.
        high: Upper end.
    """

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ImageDifference:
    """One image under two models.

    Attributes:
        index: Its place in the data set.
        image_id: Its id.
        file_name: Its file.
        objects: How many objects both have values of.
        first: Mean value over these objects for the first model.
        other: The same for the other.
    """

    index: int
    image_id: int
    file_name: str
    objects: int
    first: float
    other: float

    @property
    def difference(self) -> float:
        """The other's mean less the first's: below 0 where the other is worse."""
        return self.other - self.first


@dataclass(frozen=True)
class Agreement:
    """How alike the masks of two models are, whatever the truth is.

    Attributes:
        masks: How many pairs of masks.
        iou: Mean IoU of the pairs; two empty masks are equal.
        share_above_90: Share of pairs with an IoU of at least 0.9.
    """

    masks: int
    iou: float
    share_above_90: float


@dataclass(frozen=True)
class TaskDifference:
    """What one task says of two models.

    Attributes:
        task: Name of the task.
        compared: What its values are, in words.
        objects: How many objects both have values of.
        first: Mean value of the first model, each object weighing the same.
        other: Mean value of the other.
        difference: The other's less the first's; None where the task gives no values.
        metrics: Differences of the task's own figures, where both models have them; without intervals.
        agreement: Of the masks; None where records hold none.
        images: The images that both have values of, the largest loss of the other first.
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
        """All of it as plain values."""
        content = asdict(self)
        for image, plain in zip(self.images, content["images"], strict=True):
            plain["difference"] = image.difference
        return content


@dataclass(frozen=True)
class Comparison:
    """Several models on one data set.

    Attributes:
        evaluations: Of each model, in the order given.
        differences: Of each model but the first against the first, one entry a task.
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
    unfinished: Path | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Comparison:
    """Score several models on the same images, each image read once, and compare all with the first.

    Args:
        subjects: The models, two or more.
        dataset: As for `evaluate`.
        tasks: What to ask. Agreement needs tasks that keep masks.
        limit: As for `evaluate`.
        seed: Of the bootstrap.
        unfinished: As for `evaluate_together`.
        workers: As for `evaluate`.
        progress: As for `evaluate`.

    Returns:
        The comparison; in other processes than the first of a group, without differences.

    Raises:
        ValueError: As for `evaluate`, or fewer than two models.
    """
    if len(subjects) < 2:
        raise ValueError(f"models: expected at least 2 to compare, got {len(subjects)}")
    first, *others = evaluations = evaluate_together(
        subjects, dataset, tasks, limit=limit, unfinished=unfinished, workers=workers, progress=progress
    )
    differences = tuple(
        tuple(task_difference(task, first, other, seed=seed) for task in tasks) if other.records else ()
        for other in others
    )
    return Comparison(tuple(evaluations), differences)


def task_difference(task: Task, first: Evaluation, other: Evaluation, *, seed: int = 0) -> TaskDifference:
    """Compare two evaluations of the same images in one task.

    Raises:
        ValueError: They are of other images, or of other options of the task.
    """
    if first.options.get(task.name) != other.options.get(task.name):
        raise ValueError(
            f"evaluations: expected one task {task.name} in both, got {first.options.get(task.name)} "
            f"and {other.options.get(task.name)}"
        )
    if [r["image_id"] for r in first.records] != [r["image_id"] for r in other.records]:
        raise ValueError("evaluations: expected the same images in both, got others")
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
    """Mean of the first, of the other and of their difference, from sums and counts [I, 3] of each image."""
    if not len(totals):
        return None, None, None
    first, other, count = totals.sum(0).tolist()
    return first / count, other / count, mean_interval(totals[:, 1] - totals[:, 0], totals[:, 2], seed=seed)


def mean_interval(sums: NDArray[np.float64], counts: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Mean over all objects, and its 95 % interval over draws of images.

    Args:
        sums: [I] of each image, the sum over its objects.
        counts: [I] how many objects each has, above 0.
        seed: Of the draws.

    Returns:
        The same for the same arguments.
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
    """IoU of each mask of a record with that of the same key of another."""
    first, other = task.masks(one[task.name]), task.masks(two[task.name])
    return [
        1.0 if first[key] == other[key] else float(rle_ious([first[key]], [other[key]], one["size"])[0, 0])
        for key in first
        if key in other
    ]


def _agreement(ious: Sequence[float]) -> Agreement | None:
    if not ious:
        return None
    found = np.array(ious)
    return Agreement(len(ious), float(found.mean()), float((found >= GOOD_IOU).mean()))


def _metric_differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Of figures that are no counts."""
    return {
        name: other[name] - value
        for name, value in first.items()
        if isinstance(value, float) and isinstance(other.get(name), float)
    }
