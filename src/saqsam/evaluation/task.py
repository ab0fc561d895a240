"""The interface of tasks: score each image as plain values, and compute metrics from the scores of all images.

Everything between the two (resumed runs, several processes, comparisons of models) handles records alone and knows no
task.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from saqsam.data.ade20k import AdeDataset
from saqsam.data.types import Dataset, Sample
from saqsam.evaluation.record_schema import ANY, MapOf, Schema
from saqsam.inference.mask_generator import GeneratedMask, GeneratorOptions, MaskGenerator
from saqsam.inference.predictor import Predictor

Record = dict[str, Any]
"""JSON values that describe one image."""
Metrics = dict[str, float | int | None]
"""Metrics by name; None where there was nothing to measure."""


class ImageSession:
    """One image under one model, encoded once, when the first task asks for it.

    Attributes:
        sample: The image and its objects.
        skipped: Number of objects and boxes that tasks skipped, by reason; tasks add to it.
    """

    def __init__(self, predictor: Predictor, sample: Sample, *, encoded: bool = False) -> None:
        self.sample = sample
        self.skipped: Counter[str] = Counter()
        self._predictor = predictor
        self._is_encoded = encoded
        self._everything: dict[GeneratorOptions, list[GeneratedMask]] = {}

    @property
    def predictor(self) -> Predictor:
        """Predictor that is set to the image."""
        if not self._is_encoded:
            self._predictor.set_image(self.sample.image)
            self._is_encoded = True
        return self._predictor

    @property
    def is_encoded(self) -> bool:
        """Whether a task has asked for the predictor."""
        return self._is_encoded

    def everything(self, options: GeneratorOptions) -> list[GeneratedMask]:
        """Return automatic masks of the image, generated once per set of options for all tasks."""
        if options not in self._everything:
            generator = MaskGenerator(self.predictor, options)
            self._everything[options] = generator.generate(self.sample.image, encoded=self.predictor.image)
        return self._everything[options]

    def new_predictor(self) -> Predictor:
        """Return another predictor of the model without an image, for example for a tile."""
        own = self._predictor
        return Predictor(own.backend, own.processor, prompts_at_once=own.prompts_at_once)


class Task(ABC):
    """A question about each image that a model is scored on.

    To add one, write a class and an entry of `saqsam.evaluation.registry.TASKS`.

    Attributes:
        name: Name in the registry, on the command line and in records.
        compared: What `values` returns, for tables that compare models.
        unit: The same in short, for captions.
        scored: What is scored, in the plural, for error messages.
        needs_objects: Whether a dataset without annotated objects is an error; otherwise metrics are None on it.
        metric_labels: Display names of metrics whose own names say little.
        has_comparable_masks: Whether masks of two models can belong to one key, so that pictures can compare them.
    """

    name: ClassVar[str]
    compared: ClassVar[str]
    unit: ClassVar[str] = "IoU"
    scored: ClassVar[str] = "instances"
    needs_objects: ClassVar[bool] = False
    metric_labels: ClassVar[Mapping[str, str]] = {}
    has_comparable_masks: ClassVar[bool] = True

    @classmethod
    def create(cls, dataset: Dataset, options: Mapping[str, Any], *, keep_masks: bool) -> Task:
        """Create the task for a dataset from the options of its registry entry; this default suits tasks without any.

        Args:
            dataset: Dataset to score.
            options: A value for each option of the entry, opened where the option has an opener.
            keep_masks: Keep masks in the records, for comparisons and pictures.
        """
        return cls()

    def check_dataset(self, dataset: Dataset) -> None:
        """Check that the task can score a dataset.

        Raises:
            ValueError: The dataset has no objects but label maps alone.
        """
        if isinstance(dataset, AdeDataset):
            raise ValueError(
                f"data {dataset.name!r}: ADE20K has label maps but no objects; run the task semantic alone"
            )

    @property
    def has_box_prompts(self) -> bool:
        """Whether the keys of `masks` are objects whose own boxes were the prompts."""
        return False

    def input_skipped(self) -> Mapping[str, int]:
        """Return the number of entries that were skipped in other inputs, such as detections, by reason."""
        return {}

    def input_notes(self) -> Mapping[str, int]:
        """Return how often something unusual in other inputs was accepted, by description."""
        return {}

    def why_nothing_was_scored(self, records: Sequence[Record]) -> Mapping[str, int]:
        """Return further reasons, with counts, why none of the task's records has anything to score."""
        return {}

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return everything that decides about scores, as plain values: a run resumes only with equal options."""

    @abstractmethod
    def score(self, session: ImageSession) -> Record:
        """Score an image.

        Raises:
            ValueError: An output of the model is not finite.
        """

    def schema(self) -> Schema:
        """Return the schema of the records that `score` returns, to check those that come back from a file."""
        return MapOf(ANY)

    @abstractmethod
    def reduce(self, records: Sequence[Record]) -> Metrics:
        """Compute the metrics from the records of all images, in the order of the dataset."""

    def is_scored(self, record: Record) -> bool:
        """Return whether an image had anything to score."""
        return bool(record["truth"])

    def values(self, record: Record) -> Mapping[str, float]:
        """Return one number per object of an image, higher is better, by a key that all models share."""
        return {}

    def masks(self, record: Record) -> Mapping[str, str]:
        """Return the masks kept in a record, as COCO run lengths at image size, by a key that all models share."""
        return {}


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, summed without intermediate rounding; None for no values."""
    return math.fsum(values) / len(values) if values else None
