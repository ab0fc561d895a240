"""Scores of a model on a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saqsam.evaluation.task import Metrics, Record
from saqsam.evaluation.tasks.instance import InstanceTask
from saqsam.evaluation.tasks.prompt import PromptTask


@dataclass(frozen=True)
class InstanceScore:
    """How well one instance was segmented.

    Attributes:
        image_id: Of its image.
        instance_id: Of the instance.
        iou: IoU of the predicted mask with the true one, at the original resolution.
        predicted_iou: The model's own estimate of it, as it comes from the IoU head (not bounded to [0, 1]).
    """

    image_id: int
    instance_id: int
    iou: float
    predicted_iou: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a data set.

    Attributes:
        dataset: Name of the data set.
        images: How many images were looked at.
        options: Of each task, by its name.
        metrics: Figures of each task, by its name.
        records: One an image, in the order of the data set: `index`, `image_id`, `file_name`, `size` (height, width),
            and what each task says of it under the task's name.
        skipped: How much was left out, by reason.
        notes: How often something unusual was accepted, by what it was.
    """

    dataset: str
    images: int
    options: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Metrics]
    records: tuple[Record, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def miou(self) -> float:
        """Mean IoU of the task `prompt`, each instance weighing the same.

        Raises:
            KeyError: That task was not run.
        """
        return float(self.metrics[PromptTask.name]["miou"] or 0.0)

    @property
    def instances(self) -> int:
        """How many instances the task `prompt` scored: all but crowds and what was skipped."""
        return int(self.metrics[PromptTask.name]["instances"] or 0)

    @property
    def scores(self) -> tuple[InstanceScore, ...]:
        """Of the task `prompt`, one entry per instance, in the order of the data set."""
        return tuple(
            InstanceScore(record["image_id"], found["id"], found["iou"], found["predicted_iou"])
            for record in self.records
            for found in record[PromptTask.name]["instances"]
        )

    @property
    def segm_ap(self) -> float | None:
        """COCO mask AP over IoU 0.50 to 0.95 with the detector's classes; None without detections."""
        return self.metrics.get(InstanceTask.name, {}).get("segm_ap")

    @property
    def segm_ap50(self) -> float | None:
        """COCO mask AP at IoU 0.50 with the detector's classes; None without detections."""
        return self.metrics.get(InstanceTask.name, {}).get("segm_ap50")

    def to_dict(self) -> dict[str, Any]:
        """All figures and records as plain values, without times or paths: equal runs give equal ones."""
        return {
            "dataset": self.dataset,
            "images": self.images,
            "tasks": {
                name: {"options": dict(self.options[name]), "metrics": dict(self.metrics[name])}
                for name in self.metrics
            },
            "skipped": dict(self.skipped),
            "notes": dict(self.notes),
            "records": list(self.records),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
