"""Relaxation of a unit for learning: soft rounding, learned scales and random dropping inside a `with` block.

AdaRound (arXiv 2004.10568) relaxes rounding to continuous variables, LSQ (arXiv 1902.08153) learns scales, and QDrop
(arXiv 2203.05740) randomly leaves activations float. None of it outlives the block: the unit is packed when it ends,
and restored if it raises. Deviations from the published code: every weight ends on its grid, and scales are learned by
their logarithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.pack import pack_layer, round_weight
from saqsam.convert.quantizer_kinds import learned_form
from saqsam.models.structure import replace_module
from saqsam.ptq.unit_parameters import UnitParameters
from saqsam.quant.layers import PackedLinear, PackedTensor, channel_axis
from saqsam.quant.learned import (
    LearnedAffineQuantizer,
    LearnedScaleLinear,
    RandomDrop,
    StraightThrough,
)
from saqsam.quant.rounding import LearnedRounding
from saqsam.recipes.recipe import Recipe


@dataclass
class RelaxedUnit:
    """The learned modules and parameters of a unit, by module or parameter name.

    Attributes:
        roundings: Soft rounding of weights.
        scales: Activation quantizers with learned scales.
        scale_layers: Packed layers with learned weight scales.
        float_parameters: Biases, normalization parameters and channel scales.
        nearest: Weights by round-to-nearest, whose grids the soft rounding keeps.
    """

    roundings: dict[str, LearnedRounding] = field(default_factory=dict)
    scales: dict[str, LearnedAffineQuantizer] = field(default_factory=dict)
    scale_layers: dict[str, LearnedScaleLinear] = field(default_factory=dict)
    float_parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    nearest: dict[str, PackedTensor] = field(default_factory=dict)


@contextmanager
def relaxed(
    model: SamModel,
    parameters: UnitParameters,
    recipe: Recipe,
    drop: float,
    generator: torch.Generator,
) -> Iterator[RelaxedUnit]:
    """Put soft rounding, learned scales and random dropping into a unit while the block runs.

    After it the unit's layers are packed with every weight on its grid, its slots hold plain quantizers, and float
    parameters hold float16 values. If the block raises, the unit is restored.

    Args:
        model: Calibrated model; changed in place.
        parameters: Names of what is learned.
        recipe: Recipe with `reconstruction`.
        drop: Probability that an activation stays float.
        generator: Generator of the random masks, on the model's device.

    Yields:
        The modules and parameters to optimize.
    """
    snapshot = _Snapshot(model, parameters)
    unit = RelaxedUnit(float_parameters=snapshot.float_parameters)
    try:
        _relax_activations(model, parameters, recipe, drop, generator, unit)
        _relax_weights(model, parameters, recipe, unit)
        yield unit
    except BaseException:
        snapshot.restore()
        raise
    _harden(model, parameters, snapshot, unit)


class _Snapshot:
    """The modules and parameters of a unit before it is relaxed."""

    def __init__(self, model: SamModel, parameters: UnitParameters) -> None:
        self.model, self.layers = model, [site.name for site, _ in parameters.layers]
        # Layers first, since slots are restored in them.
        names = (*parameters.packed_layers, *parameters.slots, *parameters.passed_slots)
        self.modules = {name: model.get_submodule(name) for name in names}
        self.float_parameters = {name: model.get_parameter(name) for name in parameters.float_parameters}
        self.values = {name: parameter.detach().clone() for name, parameter in self.float_parameters.items()}

    def restore(self) -> None:
        """Put everything back in place."""
        for name, module in self.modules.items():
            replace_module(self.model, name, module)
        for name in self.layers:
            replace_module(self.model, f"{name}.weight_quantizer", nn.Identity())
        for name, parameter in self.float_parameters.items():
            parameter.requires_grad_(False).copy_(self.values[name])


def _relax_activations(
    model: SamModel,
    parameters: UnitParameters,
    recipe: Recipe,
    drop: float,
    generator: torch.Generator,
    unit: RelaxedUnit,
) -> None:
    """Replace activation quantizers by learned ones under random dropping; turn on gradients of float parameters."""
    assert recipe.reconstruction is not None
    for parameter in unit.float_parameters.values():
        parameter.requires_grad_(True)
    for name in parameters.slots:
        quantizer = model.get_submodule(name)
        learned = learned_form(quantizer) if recipe.reconstruction.scales else None
        if learned is not None:
            unit.scales[name] = learned
        replace_module(model, name, RandomDrop(learned or StraightThrough(quantizer), drop, generator))
    for name in parameters.passed_slots:
        # Rounding has no gradient of its own, which would leave nothing to learn from.
        replace_module(model, name, StraightThrough(model.get_submodule(name)))


def _relax_weights(model: SamModel, parameters: UnitParameters, recipe: Recipe, unit: RelaxedUnit) -> None:
    """Put soft rounding into the slots of float weights, and learned scales around packed weights."""
    for name in parameters.packed_layers:
        layer = model.get_submodule(name)
        assert isinstance(layer, PackedLinear)
        unit.scale_layers[name] = LearnedScaleLinear(layer)
        replace_module(model, name, unit.scale_layers[name])
    for site, bits in parameters.layers:
        layer = model.get_submodule(site.name)
        axis = channel_axis(layer)
        start = unit.nearest[site.name] = round_weight(layer, bits, recipe)
        assert isinstance(layer.weight, Tensor)
        shape = [size if i == axis else 1 for i, size in enumerate(layer.weight.shape)]
        rounding = LearnedRounding(
            layer.weight, start.scale.reshape(shape), start.zero_point.float().reshape(shape), bits
        )
        unit.roundings[site.name] = rounding
        replace_module(model, f"{site.name}.weight_quantizer", rounding)


def _harden(model: SamModel, parameters: UnitParameters, snapshot: _Snapshot, unit: RelaxedUnit) -> None:
    """Pack the unit's weights and put plain quantizers with the learned scales into its slots."""
    for parameter in unit.float_parameters.values():
        # A checkpoint stores float16.
        parameter.requires_grad_(False).copy_(parameter.half())
    for name in parameters.slots:
        quantizer = unit.scales[name].fixed() if name in unit.scales else snapshot.modules[name]
        replace_module(model, name, quantizer.to(model.device))
    for name in parameters.passed_slots:
        replace_module(model, name, snapshot.modules[name])
    for name, scale_layer in unit.scale_layers.items():
        replace_module(model, name, scale_layer.fixed())
    for site, bits in parameters.layers:
        start, codes = unit.nearest[site.name], unit.roundings[site.name].codes()
        packed = PackedTensor.from_codes(codes, start.scale, start.zero_point, bits, start.axis)
        pack_layer(model, site.name, packed)
