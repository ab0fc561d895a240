"""Calibration: run a prepared model on a few images and let observers see its activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import SamModel

from saqsam.convert.plan import Slot, activation_slots
from saqsam.convert.prepare import Observer
from saqsam.inference.backend import TorchBackend
from saqsam.models.family import ModelStructure, replace_module
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.quant.logarithmic import GranularityObserver, ValueTap
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver
from saqsam.recipes.recipe import Recipe
from saqsam.utils.progress import Progress


@contextmanager
def observing(
    model: SamModel, structure: ModelStructure, recipe: Recipe, slots: Iterable[Slot] | None = None
) -> Iterator[dict[str, Observer]]:
    """Observers in slots of a prepared model (None: all) while the block runs, by slot name; empty slots after it."""
    observers: dict[str, Observer] = {}
    taps: dict[str, ValueTap] = {}
    for slot in activation_slots(structure, recipe) if slots is None else slots:
        if slot.dynamic_axis is not None:
            continue  # there is nothing to set beforehand
        site, _, kind = slot.name.rpartition(".")
        if slot.is_log:
            taps[site] = ValueTap()
            observers[slot.name] = GranularityObserver(
                slot.bits,
                taps[site],
                finest=recipe.probabilities.finest,
                row_scaled=recipe.probabilities.scale == "row",
            )
        elif recipe.bimodal and slot.part in TOKEN_TO_IMAGE_PARTS and kind in _MERGED:
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


_MERGED = ("query_quantizer", "key_quantizer")


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
    """Observe the float activations of a prepared model, one image after another.

    Args:
        model: Prepared model.
        structure: Its structure.
        recipe: Says what is observed.
        images: Images and prompts.
        progress: Progress callback.
        slots: The recipe's slots to look at; None for all.

    Returns:
        Observers by slot name.

    Raises:
        ValueError: If an activation is not finite.
    """
    with observing(model, structure, recipe, slots) as observers:
        if observers:
            show_images(model, images, "calibrating", progress)
    return observers


def show_images(model: SamModel, images: CalibrationImages, what: str, progress: Progress | None) -> None:
    """Run a model on all images and prompts, for those who watch it; progress is reported as `what`."""
    backend = TorchBackend(model)
    for step in range(len(images)):
        pixel_values, prompts = images[step]
        backend.decode(backend.encode(pixel_values), prompts, multimask_output=False)
        if progress is not None:
            progress(what, step + 1, len(images))
