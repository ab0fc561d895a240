"""The learnable parameters of a unit, by name: listed before learning, and read from the model after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.convert.pack import place_empty_weight
from saqsam.convert.plan import QuantizationPlan
from saqsam.models.structure import Site
from saqsam.ptq.units import Unit


@dataclass(frozen=True)
class UnitParameters:
    """Names of what is learned in a unit.

    Attributes:
        layers: Layers whose rounding is learned, and the bits of their weights.
        slots: Activation slots, whose scales are learned.
        float_parameters: Biases, normalization parameters and channel scales, which stay float.
        packed_layers: Linear layers that are packed already and whose weight scales are learned.
        passed_slots: Activation slots outside of the unit that its loss passes through. Nothing is learned in them.
    """

    layers: tuple[tuple[Site, int], ...]
    slots: tuple[str, ...]
    float_parameters: tuple[str, ...] = ()
    packed_layers: tuple[str, ...] = ()
    passed_slots: tuple[str, ...] = ()


def unit_parameters(unit: Unit, model: SamModel, plan: QuantizationPlan) -> UnitParameters:
    """Return the names of what a recipe learns in a unit.

    Args:
        unit: The unit.
        model: Calibrated model, earlier units packed.
        plan: Quantization plan of the run.
    """

    def is_inside(name: str) -> bool:
        return any(name.startswith(f"{module}.") for module in unit.modules)

    layers = tuple((site, bits) for site, bits in plan.weights if is_inside(site.name))
    slots = tuple(slot.name for slot in plan.slots if is_inside(slot.name))
    spec = plan.recipe.reconstruction
    floats: tuple[str, ...] = ()
    if spec is not None and spec.affine:
        # The only vectors are biases, normalization parameters and channel scales; of a packed layer no other
        # parameter is left.
        floats = tuple(n for n, p in model.named_parameters() if is_inside(n) and p.dim() == 1)
    if unit.learns_codes:
        return UnitParameters(layers, slots, floats, passed_slots=unit.passed_slots)
    packed = tuple(site.name for site, _ in layers)
    return UnitParameters((), slots, floats, packed, unit.passed_slots)


def unit_tensors(model: SamModel, parameters: UnitParameters) -> dict[str, Tensor]:
    """Return copies on the CPU of all tensors that learning changed in a unit, by name in the model.

    Args:
        model: Model in which the unit has been learned, or holds modules of the same shapes.
        parameters: Names of what was learned.
    """
    modules = [
        *(f"{site.name}.weight" for site, _ in parameters.layers),
        *(f"{name}.weight" for name in parameters.packed_layers),
        *parameters.slots,
    ]
    tensors = {
        f"{module}.{name}": tensor
        for module in modules
        for name, tensor in model.get_submodule(module).state_dict().items()
    }
    tensors.update({name: model.get_parameter(name) for name in parameters.float_parameters})
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def place_unit_tensors(model: SamModel, parameters: UnitParameters, tensors: Mapping[str, Tensor]) -> None:
    """Place the tensors of a learned unit in a copy of the model in which it has not been learned.

    Args:
        model: Calibrated model, earlier units packed; changed in place.
        parameters: Names of what was learned.
        tensors: Tensors of `unit_tensors` by name in the model.
    """
    for site, bits in parameters.layers:
        place_empty_weight(model, site, bits)
    for name, tensor in tensors.items():
        module, _, attribute = name.rpartition(".")
        getattr(model.get_submodule(module), attribute).copy_(tensor)
