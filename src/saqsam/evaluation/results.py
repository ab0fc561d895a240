"""Results of an evaluation: metrics of each task, and the records that they are computed from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saqsam.evaluation.task import Metrics, Record


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a dataset.

    Attributes:
        dataset: Name of the dataset.
        images: Number of images that were evaluated.
        options: Options of each task, by its name.
        metrics: Metrics of each task, by its name: `metrics["prompt"]["miou"]`.
        records: One per image, in the order of the dataset: `index`, `image_id`, `file_name`, `size` (height, width),
            and the record of each task under its name.
        skipped: Number of skipped items, by reason.
        notes: How often something unusual was accepted, by description.
    """

    dataset: str
    images: int
    options: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Metrics]
    records: tuple[Record, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all metrics and records as plain values, without times or paths: equal runs give equal values."""
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
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
