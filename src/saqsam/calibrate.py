"""Calibration: run a prepared model on a few images and let observers see its activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SamModel, SamProcessor

from saqsam.data.datasets import Dataset, Sample
from saqsam.models.structure import SamStructure, replace_module
from saqsam.predictor import Predictor
from saqsam.prepare import Progress, activation_slots
from saqsam.quant.observers import HistogramObserver
from saqsam.recipe import Calibration, Recipe


class CalibrationWarning(UserWarning):
    """Calibration went on with less than was asked for."""


@contextmanager
def observing(
    model: SamModel, structure: SamStructure, recipe: Recipe
) -> Iterator[dict[str, HistogramObserver]]:
    """Observers in all slots of a prepared model while the block runs, by slot name; empty slots after it."""
    observers = {slot.name: HistogramObserver() for slot in activation_slots(structure, recipe)}
    try:
        for name, observer in observers.items():
            replace_module(model, name, observer)
        yield observers
    finally:
        for name in observers:
            replace_module(model, name, nn.Identity())


@contextmanager
def paused(model: SamModel, observers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Empty slots in place of the observers while the block runs."""
    for name in observers:
        replace_module(model, name, nn.Identity())
    try:
        yield
    finally:
        for name, observer in observers.items():
            replace_module(model, name, observer)


@torch.inference_mode()
def calibrate(
    model: SamModel,
    processor: SamProcessor,
    structure: SamStructure,
    recipe: Recipe,
    dataset: Dataset,
    progress: Progress | None = None,
) -> dict[str, HistogramObserver]:
    """Observe the float activations of a prepared model, one image after another.

    Args:
        model: Prepared model.
        processor: Its processor.
        structure: Its structure.
        recipe: Says what is observed and on how many images.
        dataset: Images, with objects whose boxes are the prompts. For images without objects, prompts are the
            boxes of the model's own confident masks.
        progress: See `Progress`.

    Returns:
        Observers by slot name.

    Raises:
        ValueError: If no image gives a prompt, or an activation is not finite.
    """
    spec = recipe.calibration
    chosen = choose_images(len(dataset), spec)
    predictor = Predictor(model, processor, prompts_at_once=spec.prompts)
    used = 0
    with observing(model, structure, recipe) as observers:
        for step, index in enumerate(chosen):
            sample = dataset[index]
            boxes = _boxes(sample, spec)
            if boxes is None:
                with paused(model, observers):
                    boxes = propose_boxes(predictor, sample.image, spec.prompts)
            if len(boxes):
                predictor.set_image(sample.image)
                for _ in predictor.predict_low_res(boxes=boxes, multimask_output=False):
                    pass
                used += 1
            if progress is not None:
                progress("calibrating", step + 1, len(chosen))
    if not used:
        raise ValueError(f"none of the {len(chosen)} calibration images of {dataset.name} gives a prompt")
    if used < len(chosen):
        warnings.warn(
            f"{len(chosen) - used} of {len(chosen)} calibration images gave no prompt",
            CalibrationWarning,
            stacklevel=2,
        )
    return observers


def choose_images(available: int, spec: Calibration) -> list[int]:
    """Indices of the calibration images, drawn without replacement by the recipe's seed, ascending."""
    if available < 1:
        raise ValueError("the calibration data holds no image")
    if available < spec.images:
        warnings.warn(
            f"calibrating on {available} images, not {spec.images}: there are no more",
            CalibrationWarning,
            stacklevel=3,
        )
        return list(range(available))
    drawn = np.random.default_rng(spec.seed).choice(available, spec.images, replace=False)
    return sorted(drawn.tolist())


def _boxes(sample: Sample, spec: Calibration) -> NDArray[np.float64] | None:
    """Boxes [P, 4] (xyxy, original-image pixels) of at most `spec.prompts` objects; None for no object."""
    boxes = np.array([i.box for i in sample.instances if not i.is_crowd], dtype=np.float64).reshape(-1, 4)
    if not len(boxes):
        return None
    if len(boxes) > spec.prompts:
        keep = np.random.default_rng((spec.seed, sample.image_id)).choice(
            len(boxes), spec.prompts, replace=False
        )
        boxes = boxes[np.sort(keep)]
    return boxes


def propose_boxes(
    predictor: Predictor, image: NDArray[np.uint8], most: int, *, grid: int = 8
) -> NDArray[np.float64]:
    """Boxes of the model's own most confident masks, for images without labels.

    Args:
        predictor: Of the model; its image becomes this one.
        image: HWC uint8 RGB.
        most: How many boxes at most.
        grid: Points a side that ask for masks.

    Returns:
        Boxes [P, 4] (xyxy, original-image pixels), most confident first, no two of IoU above 0.7.
    """
    height, width = image.shape[:2]
    steps = (np.arange(grid) + 0.5) / grid
    points = np.stack([np.tile(steps * width, grid), np.repeat(steps * height, grid)], 1)
    predictor.set_image(image)
    chunks = list(predictor.predict_low_res(points=points[:, None], labels=np.ones((grid * grid, 1))))
    scores = torch.cat([predicted for _, predicted in chunks]).flatten()
    logits = torch.cat([low_res for low_res, _ in chunks]).flatten(0, 1)
    kept: list[Tensor] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        box = _mask_box(logits[index] > 0)
        if box is None or any(_box_iou(box, other) > 0.7 for other in kept):
            continue
        kept.append(box)
        if len(kept) == most:
            break
    if not kept:
        return np.zeros((0, 4))
    # Cells of the padded square -> pixels of the image; what lies in the padding is cut off.
    cell = predictor.processor.image_processor.pad_size["height"] / logits.shape[-1]
    input_height, input_width = predictor.input_size
    scale = np.array([width / input_width, height / input_height] * 2)
    boxes = torch.stack(kept).double().cpu().numpy() * cell * scale
    boxes = np.minimum(boxes, np.array([width, height] * 2))
    kept_inside: NDArray[np.float64] = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    return kept_inside


def _mask_box(mask: Tensor) -> Tensor | None:
    """Tight box [4] (xyxy, cells) of a mask [h, w]; None for an empty one or one of less than four cells."""
    ys, xs = torch.nonzero(mask, as_tuple=True)
    if len(ys) < 4:
        return None
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


def _box_iou(a: Tensor, b: Tensor) -> float:
    inter = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min(0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter
    return float(inter / union)
