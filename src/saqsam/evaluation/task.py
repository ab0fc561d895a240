"""What a task is: a score of each image as plain values, and figures from the scores of all images.

Everything between the two (interrupted runs, several processes, comparisons of models) handles records alone and knows
no task.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from saqsam.data.types import Sample
from saqsam.evaluation.record_schema import ANY, MapOf, Schema
from saqsam.inference.mask_generator import GeneratedMask, GeneratorOptions, MaskGenerator
from saqsam.inference.predictor import Predictor

Record = dict[str, Any]
"""What JSON holds, of one image."""
Metrics = dict[str, float | int | None]
"""Figures by name; None where nothing was there to be measured."""


class ImageSession:
    """One image and the model that looks at it; encoded once, by the first task that asks.

    Attributes:
        sample: The image and its objects.
        skipped: What tasks leave out of it, by reason; they add to it.
    """

    def __init__(self, predictor: Predictor, sample: Sample, *, encoded: bool = False) -> None:
        self.sample = sample
        self.skipped: Counter[str] = Counter()
        self._predictor = predictor
        self._is_encoded = encoded
        self._everything: dict[GeneratorOptions, list[GeneratedMask]] = {}

    @property
    def predictor(self) -> Predictor:
        """Set to the image."""
        if not self._is_encoded:
            self._predictor.set_image(self.sample.image)
            self._is_encoded = True
        return self._predictor

    @property
    def is_encoded(self) -> bool:
        """Whether a task has asked for the predictor yet."""
        return self._is_encoded

    def everything(self, options: GeneratorOptions) -> list[GeneratedMask]:
        """Masks of everything in the image, made once for all tasks that want them with the same options."""
        if options not in self._everything:
            generator = MaskGenerator(self.predictor, options)
            self._everything[options] = generator.generate(self.sample.image, is_set=True)
        return self._everything[options]

    def new_predictor(self) -> Predictor:
        """Another predictor of the same model, without an image: for parts of the image, say."""
        own = self._predictor
        return Predictor(own.backend, own.processor, prompts_at_once=own.prompts_at_once)


class Task(ABC):
    """What is asked of a model about each image.

    Attributes:
        name: As the command line has it, and the key of its part of a record.
        compared: What `values` gives, in words, for tables that compare models.
        scored: What is scored, in the plural, for error messages.
        needs_objects: Whether data without any annotated object is an error; else metrics are None on such data.
    """

    name: ClassVar[str]
    compared: ClassVar[str]
    scored: ClassVar[str] = "instances"
    needs_objects: ClassVar[bool] = False

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """All that decides about scores, as plain values: runs that differ in it are different runs."""

    @abstractmethod
    def score(self, session: ImageSession) -> Record:
        """Score an image.

        Raises:
            ValueError: Outputs of the model that are not finite.
        """

    def schema(self) -> Schema:
        """Return the schema of what `score` returns, to check records that come back from a file."""
        return MapOf(ANY)

    @abstractmethod
    def reduce(self, records: Sequence[Record]) -> Metrics:
        """Figures from all that `score` gave, in the order of the data set."""

    def is_scored(self, record: Record) -> bool:
        """Whether an image had anything to score."""
        return bool(record["truth"])

    def values(self, record: Record) -> Mapping[str, float]:
        """One number for each object of an image, by a key that other models' records share; higher is better."""
        return {}

    def masks(self, record: Record) -> Mapping[str, str]:
        """Masks kept in a record: `counts` of COCO run lengths at image size, by keys that other models share."""
        return {}


def mean(values: Sequence[float]) -> float | None:
    """The mean, summed without rounding in between; None of nothing."""
    return math.fsum(values) / len(values) if values else None
