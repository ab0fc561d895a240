"""Prepare a float SAM for calibration, and fill its slots with quantizers afterwards.

Float, prepared, calibrated and packed models have the same class; the type of a module tells its state: `nn.Linear`
(float), `QuantLinear` with `nn.Identity` in its slots (prepared) or with quantizers (calibrated), `PackedLinear`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from transformers import SamModel

from saqsam.convert.image_positions import place_image_positions
from saqsam.convert.plan import QuantizationPlan
from saqsam.convert.quantizer_kinds import QUANTIZER_KINDS, Observer
from saqsam.models.structure import replace_module
from saqsam.quant.layers import (
    ChannelScale,
    QuantLinear,
    to_quant_layer,
)
from saqsam.utils.progress import Progress


def prepare(model: SamModel, plan: QuantizationPlan) -> None:
    """Give every planned layer and attention empty quantizer slots, in place; outputs do not change.

    Args:
        model: Float model.
        plan: Quantization plan of the run.
    """
    for site in plan.structure.attentions:
        attention = model.get_submodule(site.name)
        new = plan.family.quantizable_attention(
            attention,
            quantized_rel_pos_query=plan.recipe.quantized_rel_pos_query,
            row_scaled=plan.recipe.probabilities.scale == "row",
        )
        replace_module(model, site.name, new)
    for weighted, _ in plan.weights:
        layer = to_quant_layer(model.get_submodule(weighted.name))
        if plan.recipe.input_scales and weighted.name in plan.structure.residual_readers:
            assert isinstance(layer, QuantLinear)
            layer.input_scale = ChannelScale(layer.in_features).to(layer.weight.device)
        replace_module(model, weighted.name, layer)
    place_image_positions(model, plan)


def shared_copy(model: SamModel) -> SamModel:
    """Return a copy with modules of its own, whose parameters share the storage of the model's.

    Args:
        model: Model to copy.
    """
    shared = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, shared)


def prepared_copy(model: SamModel, plan: QuantizationPlan) -> SamModel:
    """Return a prepared copy of a float model that shares its parameters.

    A prepared attention computes in chunks. That of transformers takes two gigabytes in a global block of SAM-H.

    Args:
        model: Float model.
        plan: Quantization plan.
    """
    prepared = shared_copy(model)
    prepare(prepared, plan)
    return prepared


@contextmanager
def emptied(model: SamModel, names: Iterable[str]) -> Iterator[None]:
    """Empty the named slots while the block runs, then put their quantizers back."""
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
    plan: QuantizationPlan,
    observers: Mapping[str, Observer],
    progress: Progress | None = None,
) -> None:
    """Put a quantizer with the range that the recipe's rule finds into every slot.

    Args:
        model: Prepared model.
        plan: Quantization plan of the run.
        observers: Observers by slot name; dynamic slots need none.
        progress: Progress callback.

    Raises:
        ValueError: An observer has seen nothing, or values that are not finite.
    """
    slots = plan.slots
    if progress is not None:
        progress("activation ranges", 0, len(slots))
    for step, slot in enumerate(slots):
        kind = QUANTIZER_KINDS[slot.kind]
        observer = observers[slot.name] if kind.needs_observer else None
        try:
            quantizer = kind.from_observer(observer, slot, plan.recipe)
        except ValueError as error:
            raise ValueError(f"{slot.name}: {error}") from error
        replace_module(model, slot.name, quantizer.to(model.device))
        if progress is not None:
            progress("activation ranges", step + 1, len(slots))


def place_empty_quantizers(model: SamModel, plan: QuantizationPlan) -> None:
    """Put a quantizer with parameters to be loaded into every slot of a prepared model."""
    for slot in plan.slots:
        empty = QUANTIZER_KINDS[slot.kind].empty(slot)
        replace_module(model, slot.name, empty.to(model.device))
