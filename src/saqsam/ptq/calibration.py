"""Calibration: run a prepared model on the calibration images with observers in its slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import SamModel

from saqsam.convert.plan import Slot, activation_slots
from saqsam.convert.prepare import Observer
from saqsam.inference.backend import TorchBackend
from saqsam.models.family import replace_module
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.models.structure import ModelStructure
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.quant.logarithmic import GranularityObserver, ValueTap
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver
from saqsam.recipes.recipe import Recipe
from saqsam.utils.progress import Progress


@contextmanager
def observing(
    model: SamModel, structure: ModelStructure, recipe: Recipe, slots: Iterable[Slot] | None = None
) -> Iterator[dict[str, Observer]]:
    """Put observers into slots of a prepared model while the block runs; the slots are empty after it.

    Args:
        model: Prepared model.
        structure: Structure of the model.
        recipe: Recipe, which decides the kind of each observer.
        slots: Slots to observe; None for all slots of the recipe.

    Yields:
        Observers by slot name.
    """
    observers: dict[str, Observer] = {}
    taps: dict[str, ValueTap] = {}
    for slot in activation_slots(structure, recipe) if slots is None else slots:
        if slot.dynamic_axis is not None:
            continue  # its range is set at run time
        site, _, kind = slot.name.rpartition(".")
        if slot.is_log:
            taps[site] = ValueTap()
            observers[slot.name] = GranularityObserver(
                slot.bits,
                taps[site],
                max_tau=recipe.probabilities.finest,
                row_scaled=recipe.probabilities.scale == "row",
            )
        elif recipe.bimodal and slot.part in TOKEN_TO_IMAGE_PARTS and kind in _BIMODAL_SLOTS:
            observers[slot.name] = ChannelHistogramObserver(axes=(1, 3))
        else:
            observers[slot.name] = HistogramObserver()
    try:
        for name, observer in observers.items():
            replace_module(model, name, observer)
        for site, tap in taps.items():
            name = f"{site}.value_quantizer"
            replace_module(model, name, nn.Sequential(tap, observers[name]))
        yield observers
    finally:
        for name in observers:
            replace_module(model, name, nn.Identity())
        for tap in taps.values():
            tap.last = None


_BIMODAL_SLOTS = ("query_quantizer", "key_quantizer")
"""Slots that bimodal integration changes the sign of, by channel."""


@torch.inference_mode()
def calibrate(
    model: SamModel,
    structure: ModelStructure,
    recipe: Recipe,
    images: CalibrationImages,
    progress: Progress | None = None,
    *,
    slots: Iterable[Slot] | None = None,
) -> dict[str, Observer]:
    """Observe the float activations of a prepared model on all calibration images.

    Args:
        model: Prepared model.
        structure: Structure of the model.
        recipe: Recipe, which decides what is observed.
        images: Calibration images.
        progress: Progress callback.
        slots: Slots to observe; None for all slots of the recipe.

    Returns:
        Observers by slot name.

    Raises:
        ValueError: An activation is not finite.
    """
    with observing(model, structure, recipe, slots) as observers:
        if observers:
            run_images(model, images, "calibrating", progress)
    return observers


def run_images(model: SamModel, images: CalibrationImages, phase: str, progress: Progress | None) -> None:
    """Run a model on all calibration images and prompts, for observers or hooks that are in place.

    Args:
        model: Model to run.
        images: Calibration images.
        phase: Name of the phase for the progress callback.
        progress: Progress callback.
    """
    backend = TorchBackend(model)
    for step in range(len(images)):
        pixel_values, prompts = images[step]
        backend.decode(backend.encode(pixel_values), prompts, multimask_output=False)
        if progress is not None:
            progress(phase, step + 1, len(images))
