"""Inputs of tasks beside the images: detections, label maps, class names and options of automatic masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saqsam.data.detections import DetectionSource, load_detections
from saqsam.data.label_maps import FolderLabels, LabelMaps
from saqsam.data.open import SIMULATED
from saqsam.data.simulated_detections import SimulatedDetections
from saqsam.data.simulated_labels import SimulatedLabels
from saqsam.data.types import Dataset
from saqsam.inference.mask_generator import GeneratorOptions


def open_detections(source: str | Path | DetectionSource, dataset: Dataset) -> DetectionSource:
    """Open detections from a COCO results file, or simulate them.

    Args:
        source: Path of the file; `simulated` for boxes made from the true ones; or opened detections, returned as
            they are.
        dataset: Dataset that the detections belong to.

    Raises:
        ValueError: The file cannot be used.
    """
    if isinstance(source, str | Path):
        return SimulatedDetections() if str(source) == SIMULATED else load_detections(source, dataset)
    return source


def open_labels(source: str | Path | LabelMaps, dataset: Dataset) -> LabelMaps:
    """Open label maps from a folder, or simulate them.

    Args:
        source: Path of the folder; `simulated` for coarse maps made from the true ones; or opened label maps, returned
            as they are.
        dataset: Dataset that the label maps belong to.

    Raises:
        ValueError: The folder cannot be used.
    """
    if isinstance(source, str | Path):
        return SimulatedLabels() if str(source) == SIMULATED else FolderLabels(source, dataset)
    return source


def generator_options(options: Mapping[str, Any]) -> GeneratorOptions:
    """Return options of automatic masks from task options, with the official value for each that is None."""
    fields = {
        "points_per_side": options["points_per_side"],
        "pred_iou_thresh": options["pred_iou"],
        "stability_score_thresh": options["stability"],
    }
    return GeneratorOptions(**{name: value for name, value in fields.items() if value is not None})
