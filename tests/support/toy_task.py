"""A task that is not part of saqsam: one class in one file, and one registry entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from saqsam.data.types import Dataset
from saqsam.evaluation.registry import TaskEntry, TaskOption
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean


class BrightnessTask(Task):
    """Mean brightness of the images, times a factor; needs no model."""

    name = "brightness"
    compared = "brightness of an image"
    metric_labels: ClassVar = {"brightness": "mean brightness"}

    def __init__(self, factor: float) -> None:
        self.factor = factor

    @classmethod
    def create(cls, dataset: Dataset, options: Mapping[str, Any], *, keep_masks: bool) -> BrightnessTask:
        return cls(options["factor"])

    def options(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def score(self, session: ImageSession) -> Record:
        return {"brightness": float(session.sample.image.mean()) * self.factor}

    def reduce(self, records: Sequence[Record]) -> Metrics:
        return {"brightness": mean([record["brightness"] for record in records])}

    def is_scored(self, record: Record) -> bool:
        return True


ENTRY = TaskEntry(
    "brightness",
    "support.toy_task:BrightnessTask",
    "mean brightness",
    (TaskOption("factor", float, "Multiply the brightness.", "X", default=1.0, minimum=0),),
)
