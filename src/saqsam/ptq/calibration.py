"""Calibration: run a prepared model on the calibration images with observers in its slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.plan import QuantizationPlan, Slot
from saqsam.convert.quantizer_kinds import QUANTIZER_KINDS, Observer
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features, flatten_image
from saqsam.models.parts import TOKEN_TO_IMAGE_PARTS
from saqsam.models.registry import family_of
from saqsam.models.structure import LOGIT_OPERANDS, replace_module
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.states import image_state
from saqsam.ptq.tensor_store import TensorStore
from saqsam.quant.logarithmic import GranularityObserver, ValueTap
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver
from saqsam.utils import ranks
from saqsam.utils.progress import Progress


@contextmanager
def observing(
    model: SamModel, plan: QuantizationPlan, slots: Iterable[Slot] | None = None
) -> Iterator[dict[str, Observer]]:
    """Put observers into slots of a prepared model while the block runs; the slots are empty after it.

    Args:
        model: Prepared model.
        plan: Quantization plan of the run.
        slots: Slots to observe; None for all slots of the recipe.

    Yields:
        Observers by slot name.
    """
    observers: dict[str, Observer] = {}
    taps: dict[str, ValueTap] = {}
    for slot in plan.slots if slots is None else slots:
        if not QUANTIZER_KINDS[slot.kind].needs_observer:
            continue
        site, _, kind = slot.name.rpartition(".")
        if slot.kind == "log":
            taps[site] = ValueTap()
            observers[slot.name] = GranularityObserver(
                slot.bits,
                taps[site],
                min_tau=plan.recipe.probabilities.coarsest,
                max_tau=plan.recipe.probabilities.finest,
                row_scaled=plan.recipe.probabilities.scale == "row",
            )
        elif plan.recipe.bimodal and slot.part in TOKEN_TO_IMAGE_PARTS and kind in LOGIT_OPERANDS:
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


@torch.no_grad()  # not in inference mode: learning reads the features
def calibrate(
    model: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    progress: Progress | None = None,
    *,
    slots: Iterable[Slot] | None = None,
    features: TensorStore | None = None,
) -> dict[str, Observer]:
    """Observe the float activations of a prepared model on all calibration images, which several ranks share.

    Args:
        model: Prepared model.
        plan: Quantization plan of the run.
        images: Calibration images.
        progress: Progress callback.
        slots: Slots to observe; None for all slots of the recipe.
        features: Empty store that gets the float features of each image as a state; those of other ranks' images
            stay empty.

    Returns:
        Observers by slot name.

    Raises:
        ValueError: An activation is not finite, or the features of one image exceed the memory of `features`.
    """
    with observing(model, plan, slots) as observers:
        if observers:
            inside = {f"{site.name}.input_quantizer" for site in plan.structure.float_layers}
            with_mask_head = not inside.isdisjoint(observers)
            own = ranks.share(len(images))
            if progress is not None:
                progress("calibrating", 0, len(own))
            if features is not None:
                features.append_empty(len(images))
            with ranks.agreement():
                for step, index in enumerate(own):
                    _number_calls(observers.values(), index)
                    pixel_values, prompts = images[index]
                    found = encode_image(model, pixel_values)
                    if features is not None:
                        features.fill(index, image_state(found))
                    run_decoder(model, found, prompts, with_mask_head=with_mask_head)
                    if progress is not None:
                        progress("calibrating", step + 1, len(own))
    return merge_over_ranks(observers)


def _number_calls(observers: Iterable[Observer], image: int) -> None:
    """Number the next call of each observer by its image: an image calls a module once."""
    for observer in observers:
        if not isinstance(observer, HistogramObserver):
            assert observer.next_call <= image, "an observer was called twice for one image"
            observer.next_call = image


def merge_over_ranks(observers: Mapping[str, Observer]) -> dict[str, Observer]:
    """Return observers of the values on all ranks, the same as one process would have made, on every rank.

    Args:
        observers: Observers of this rank's images by slot name; every rank has the same slots.
    """
    merged = {}
    # One after another, since histograms by channel take tens of MB in large models.
    for name, observer in observers.items():
        merged[name], *others = ranks.all_gather(observer)
        for other in others:
            merged[name].merge(other)  # type: ignore[arg-type]
    return merged


def run_image(model: SamModel, images: CalibrationImages, index: int, features: dict[int, Features]) -> None:
    """Run a model without its mask head on one image and its box prompts, for observers or hooks that are in place.

    Args:
        model: Model to run.
        images: Calibration images.
        index: Index of the image.
        features: Features of images by index. The encoder runs if the image has none, which are added then.
    """
    pixel_values, prompts = images[index]
    if index not in features:
        features[index] = encode_image(model, pixel_values)
    run_decoder(model, features[index], prompts, with_mask_head=False)


@torch.no_grad()
def encode_image(model: SamModel, pixel_values: Tensor) -> Features:
    """Return the features of one image, pixel values [1, 3, S, S] float32, on the model's device."""
    return family_of(model.config).encode(model, pixel_values.to(model.device, model.dtype))


@torch.no_grad()
def run_decoder(model: SamModel, features: Features, prompts: Prompts, *, with_mask_head: bool) -> None:
    """Run the decoder on the features of one image and its box prompts, for observers or hooks that are in place.

    Until prompts change them, image tokens are computed once for all prompts.

    Args:
        model: Model to run.
        features: Features of the image, on any device.
        prompts: P box prompts in pixels of the S x S input.
        with_mask_head: Run the mask head, too, in which the papers quantize nothing.
    """
    family = family_of(model.config)
    embedding = features.embedding.to(model.device)
    extras = tuple(extra.to(model.device) for extra in features.extras)
    assert prompts.boxes is not None
    tokens, dense = family.embed_boxes(model, prompts.boxes)
    image = flatten_image(embedding + dense)
    found = family.run_transformer(
        model, 0, tokens, image, tokens, family.image_positions(model), with_final=True
    )
    if with_mask_head:
        family.run_mask_head(model, *found, extras)
