"""Collect the content of a report: the short one after quantization, the full one with measurements."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from transformers import SamModel, SamProcessor

from saqsam._version import __version__
from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import quantization_config_of
from saqsam.data.types import Dataset
from saqsam.evaluation import Evaluation, PromptTask
from saqsam.evaluation.compare import task_difference
from saqsam.models.processing import is_stretched
from saqsam.models.registry import family_of, module_label, structure_of
from saqsam.report import focus
from saqsam.report.choices import Level
from saqsam.report.content import Accuracy, Focus, GalleryImage, Picture, Report
from saqsam.report.distributions import find_distributions
from saqsam.report.labels import describe, short_path
from saqsam.report.log import Source, read_log
from saqsam.report.reference import Reference
from saqsam.report.sensitivity import measure_sensitivity
from saqsam.utils.progress import Progress
from saqsam.viz.comparison_picture import ComparisonRow, comparison_cells
from saqsam.viz.side_by_side import image_row

CELL_WIDTH = 320
MAP_WIDTH = 256
SHORT_GALLERY, GALLERY = 6, 12
_QUALITY = 80


@dataclass(frozen=True)
class Scored:
    """Scores of a checkpoint and, where there is one, of the float model on the same images.

    Attributes:
        dataset: Dataset that was scored.
        task: Task that keeps masks.
        quantized: Evaluation of the checkpoint.
        float: Evaluation of the float model; None without one.
    """

    dataset: Dataset
    task: PromptTask
    quantized: Evaluation
    float: Evaluation | None = None


def collect(
    folder: Path, quantized: SamModel, scored: Scored | None = None, *, gallery: int = SHORT_GALLERY
) -> Report:
    """Collect the content of a report that needs no run of the model.

    Args:
        folder: Folder of the checkpoint, with its log if it has one.
        quantized: Model loaded from it.
        scored: Scores, if there are any.
        gallery: Number of images to show, those with the largest accuracy drop.

    Raises:
        ValueError: The log is damaged.
    """
    inventory, known = take_inventory(quantized), read_log(folder)
    config = quantization_config_of(quantized)
    assert config is not None
    source = None if known is None or known.source is None else _without_folders(known.source)
    left_out = {} if known is not None else {"log": "the checkpoint has no quantization.json beside it"}
    report = Report(
        name=inventory.name,
        source=source,
        content_sha256=config.content_sha256,
        versions={
            "written by saqsam": config.saqsam_version,
            **({} if config.saqsam_version == __version__ else {"reported by saqsam": __version__}),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        steps=describe(inventory.recipe, source),
        inventory=inventory,
        disk_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        clipping=() if known is None else tuple(known.log.clipping),
        signs={} if known is None else known.log.signs,
        units=() if known is None else tuple(known.log.units),
        allocation=None if known is None else known.allocation,
    )
    if scored is None:
        return replace(report, left_out={**left_out, "accuracy": "nothing was scored"})
    accuracy, images = _accuracy(scored, gallery)
    if scored.float is None:
        left_out["gallery"] = "there is no float model to compare with"
    return replace(report, accuracy=accuracy, gallery=images, left_out=left_out)


def add_measurements(
    report: Report,
    quantized: SamModel,
    reference: Reference,
    processor: SamProcessor,
    dataset: Dataset,
    *,
    level: Level | None = "parts",
    images: int = 4,
    progress: Progress | None = None,
) -> Report:
    """Add distributions, and sensitivity unless `level` is None, see `measure_sensitivity`."""
    recipe = report.inventory.recipe
    report = replace(report, distributions=find_distributions(quantized, recipe, reference.observers))
    if level is None:
        return replace(report, left_out={**report.left_out, "sensitivity": "it was not requested"})
    sensitivity = measure_sensitivity(
        reference.model, quantized, processor, recipe, dataset, images=images, level=level, progress=progress
    )
    return replace(report, sensitivity=sensitivity)


def add_focus(
    report: Report, quantized: SamModel, float_model: SamModel, processor: SamProcessor, scored: Scored
) -> Report:
    """Add attention maps of the mask token for the largest object of the image with the largest accuracy drop."""
    difference = None if report.accuracy is None else report.accuracy.difference
    if difference is None or not difference.images:
        return report
    sample = scored.dataset[difference.images[0].index]
    box = max((i for i in sample.instances if not i.is_crowd), key=lambda i: i.area).box
    names = focus.looking_attentions(structure_of(float_model.config))
    float_maps, quantized_maps = (
        focus.probabilities(model, processor, sample.image, box, names)
        for model in (focus.with_slots(float_model, report.inventory.recipe), quantized)
    )
    token, size = family_of(float_model.config).mask_token, sample.image.shape[:2]
    entries = []
    for name in names:
        pictures = {}
        for kind, maps in (("float", float_maps), ("quantized", quantized_maps)):
            values = focus.token_map(maps[name], token, size, stretched=is_stretched(processor))
            drawn = focus.map_picture(values, size, MAP_WIDTH)
            pictures[kind] = encode(drawn, f"{module_label(name)}, {kind}: where the mask token looks")
        entries.append(Focus(name, focus.focus_deviation(float_maps[name], quantized_maps[name]), pictures))
    return replace(report, focus=tuple(entries), focus_image=_boxed(sample.image, box, sample.file_name))


def _without_folders(source: Source) -> Source:
    """Return a source with names instead of paths, which reports must not disclose."""
    detections = None if source.detections is None else short_path(source.detections)
    return Source(short_path(source.model), short_path(source.calibration), detections, source.ignore_label)


def encode(pixels: NDArray[np.uint8], alt: str, *, quality: int = _QUALITY) -> Picture:
    """Encode an HWC uint8 RGB image as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=quality, method=6)
    return Picture(buffer.getvalue(), pixels.shape[1], pixels.shape[0], alt)


def _accuracy(scored: Scored, most: int) -> tuple[Accuracy, tuple[GalleryImage, ...]]:
    """Return the metrics, and the images with the largest accuracy drop."""
    task, quantized = scored.task, scored.quantized
    common = Accuracy(quantized.dataset, quantized.images, task.prompt, quantized.metrics[task.name])
    if scored.float is None:
        return common, ()
    difference = task_difference(task, scored.float, quantized)
    images = []
    for image in difference.images[:most]:
        row = image_row(
            scored.dataset[image.index],
            task,
            scored.float.records[image.index],
            quantized.records[image.index],
        )
        kinds = {
            "prompts": "image and box prompts",
            "float": "masks of the float model",
            "quantized": "masks of the quantized model",
            "difference": "blue only in the float model's masks, orange only in the quantized one's",
        }
        cells = comparison_cells(row, CELL_WIDTH)
        pictures = {
            kind: encode(cell, f"{image.file_name}: {words}")
            for (kind, words), cell in zip(kinds.items(), cells, strict=True)
        }
        images.append(GalleryImage(image.file_name, image.objects, image.first, image.other, pictures))
    metrics = scored.float.metrics[task.name]
    return replace(common, float=metrics, difference=difference), tuple(images)


def _boxed(image: NDArray[np.uint8], box: tuple[float, float, float, float], file_name: str) -> Picture:
    none = np.zeros((0, *image.shape[:2]), dtype=bool)
    cell = comparison_cells(ComparisonRow(image, [box], none, none), MAP_WIDTH)[0]
    return encode(cell, f"{file_name}: the image and its box prompt")
