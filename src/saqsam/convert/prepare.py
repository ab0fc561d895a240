"""From a float `SamModel` to one with quantizer slots, and from there to one of packed codes.

All three are `SamModel`s. What a module is says what state it is in: `nn.Linear` (float), `QuantLinear` with
`nn.Identity` in its slots (prepared), with `AffineQuantizer`s (calibrated), `PackedLinear` (quantized).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from transformers import SamModel

from saqsam.convert.plan import Slot, activation_slots, weight_sites
from saqsam.models.family import replace_module
from saqsam.models.registry import family_of
from saqsam.models.structure import ModelStructure
from saqsam.quant.affine import AffineQuantizer, DynamicQuantizer
from saqsam.quant.layers import (
    ChannelScale,
    QuantLinear,
    to_quant_layer,
)
from saqsam.quant.logarithmic import GranularityObserver, LogQuantizer
from saqsam.quant.range_observers import ChannelHistogramObserver, HistogramObserver
from saqsam.quant.ranges import activation_parameters
from saqsam.recipes.recipe import Recipe
from saqsam.utils.progress import Progress

Observer = HistogramObserver | ChannelHistogramObserver | GranularityObserver
Quantizer = AffineQuantizer | DynamicQuantizer | LogQuantizer


def prepare(model: SamModel, structure: ModelStructure, recipe: Recipe) -> None:
    """Give every layer and attention of the recipe empty quantizer slots, in place; outputs do not change."""
    family = family_of(model.config)
    for site in structure.attentions:
        attention = model.get_submodule(site.name)
        new = family.quantizable_attention(
            attention,
            quantized_rel_pos_query=recipe.quantized_rel_pos_query,
            row_scaled=recipe.probabilities.scale == "row",
        )
        replace_module(model, site.name, new)
    for weighted, _ in weight_sites(structure, recipe):
        layer = to_quant_layer(model.get_submodule(weighted.name))
        if recipe.input_scales and weighted.name in structure.residual_readers:
            assert isinstance(layer, QuantLinear)
            layer.input_scale = ChannelScale(layer.in_features).to(layer.weight.device)
        replace_module(model, weighted.name, layer)


@contextmanager
def emptied(model: SamModel, names: Iterable[str]) -> Iterator[None]:
    """Empty slots instead of their quantizers while the block runs."""
    kept = {name: model.get_submodule(name) for name in names}
    for name in kept:
        replace_module(model, name, nn.Identity())
    try:
        yield
    finally:
        for name, module in kept.items():
            replace_module(model, name, module)


def fill_slots(
    model: SamModel,
    structure: ModelStructure,
    recipe: Recipe,
    observers: Mapping[str, Observer],
    progress: Progress | None = None,
) -> None:
    """Put a quantizer with the recipe's range into every slot, from what its observer saw."""
    slots = list(activation_slots(structure, recipe))
    for step, slot in enumerate(slots):
        try:
            quantizer = _dynamic(slot) or _quantizer(observers[slot.name], slot, recipe)
        except ValueError as error:
            raise ValueError(f"{slot.name}: {error}") from error
        replace_module(model, slot.name, quantizer.to(model.device))
        if progress is not None:
            progress("activation ranges", step + 1, len(slots))


def _dynamic(slot: Slot) -> DynamicQuantizer | None:
    """The quantizer of a slot that needs nothing to be known; None for other slots."""
    return None if slot.dynamic_axis is None else DynamicQuantizer(slot.bits, slot.dynamic_axis)


def _quantizer(observer: Observer, slot: Slot, recipe: Recipe) -> Quantizer:
    """The quantizer that the recipe's rule finds for what an observer saw."""
    if isinstance(observer, GranularityObserver):
        return observer.quantizer()
    if isinstance(observer, ChannelHistogramObserver):
        observer = observer.pooled()
    scale, zero_point = activation_parameters(
        observer,
        slot.bits,
        symmetric=recipe.activation_spec.symmetric,
        method=recipe.activation_spec.range,
        percentile=recipe.calibration.percentile,
        power=recipe.calibration.power,
    )
    return AffineQuantizer(slot.bits, scale, zero_point)


def place_empty_quantizers(model: SamModel, structure: ModelStructure, recipe: Recipe) -> None:
    """Put a quantizer whose parameters are yet to load into every slot of a prepared model."""
    for slot in activation_slots(structure, recipe):
        empty = _dynamic(slot) or (LogQuantizer if slot.is_log else AffineQuantizer).empty(slot.bits)
        replace_module(model, slot.name, empty.to(model.device))
