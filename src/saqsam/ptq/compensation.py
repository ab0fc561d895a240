"""Compensation: change weights and biases layer by layer so that they make up for quantization errors, in closed form.

`quant.compensation` has the formulas: GPTQ (arXiv 2210.17323), ERQ (arXiv 2407.06794) and CAR-SAM's correction of
queries (arXiv 2605.16901). This module finds the sums that they need (`compensation_sums`) and changes the layers, in
the order of computation: the inputs of a layer come from the quantized layers before it. Layers that read the same
activations, such as the projections of an attention, share a pass over the images.

Unlike reconstruction, it takes no steps and no gradients: a few passes over each unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.pack import find_grid
from saqsam.convert.plan import PlannedWeight, QuantizationPlan
from saqsam.models.parts import DECODER_PARTS, ENCODER_PARTS, PAPER_PARTS
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.compensation_sums import CompensatedLayer, CompensationRun, Embeddings, layer_of
from saqsam.ptq.tensor_store import MemoryBudget, TensorStore
from saqsam.ptq.units import Unit, reconstruction_units
from saqsam.quant.compensation import (
    InputSums,
    compensated_rounding,
    correct_queries,
    correct_weight,
    matching_bias,
)
from saqsam.quant.layers import Grid, GridRounding
from saqsam.recipes.compensation import Compensation
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Reconstruction
from saqsam.utils.progress import Progress

PHASE = "compensating"
_BLOCKS = Reconstruction(unit="block", loss="output")
"""Units to run one after another: the encoder's blocks, the neck, the decoder's layers and its final attention."""
CHANNEL_AXIS = 0
"""Axis of the output channels in the weights of linear layers and convolutions."""


@torch.no_grad()
def compensate(
    model: SamModel,
    reference: SamModel,
    plan: QuantizationPlan,
    images: CalibrationImages,
    budget: MemoryBudget,
    progress: Progress | None = None,
    *,
    floats: TensorStore | None = None,
) -> Embeddings | None:
    """Compensate the layers of a calibrated model in place, as the recipe says.

    A compensated layer keeps float weights, whose nearest codes on the layer's grid are those to pack. Several ranks
    share the images.

    Args:
        model: Calibrated model: quantizers in all slots, float weights.
        reference: The same model with empty slots.
        plan: Quantization plan of the run, whose recipe has a `compensation`.
        images: Calibration images; evenly spaced ones are used.
        budget: Memory for the states between units.
        progress: Progress callback; it counts layers.
        floats: Image embeddings of the float encoder; None or empty if they are not known.

    Returns:
        The image embeddings of the compensated encoder and of the float one; None if images were left out.

    Raises:
        ValueError: The budget is too small for one image.
    """
    spec = plan.recipe.compensation
    assert spec is not None
    wanted = [planned for planned in plan.weights if _is_wanted(planned, spec)]
    if progress is not None:
        progress(PHASE, 0, len(wanted))
    done = 0
    with _rounding_weights(model, plan, wanted):
        run = CompensationRun(model, reference, plan, images, budget, floats)
        units = reconstruction_units(plan, _BLOCKS)
        for unit in units:
            for group in _groups(unit, wanted, plan):
                _compensate_group(run, unit, group, plan)
                done += len(group)
                if progress is not None:
                    progress(PHASE, done, len(wanted))
            if unit is not units[-1]:
                run.advance(unit)
    return run.embeddings(progress) if plan.recipe.reconstruction is not None else None


def needs_float_embeddings(recipe: Recipe, images: int) -> bool:
    """Return whether learning needs embeddings of that many images that `compensate` does not compute on its way."""
    spec = recipe.compensation
    if spec is None or recipe.reconstruction is None:
        return False
    return spec.target != "float" and images <= spec.images


def _is_wanted(planned: PlannedWeight, spec: Compensation) -> bool:
    """Return whether the weight of a layer is compensated."""
    part = planned.site.part
    return part in DECODER_PARTS or (spec.layers == "all" and part in ENCODER_PARTS)


def _groups(
    unit: Unit, wanted: Sequence[PlannedWeight], plan: QuantizationPlan
) -> Iterator[list[PlannedWeight]]:
    """Yield the layers of a unit in the order of computation, those that read the same activations together."""
    projections = {
        name: site.name
        for site in plan.structure.attentions
        if not site.is_fused
        for name in (site.query, site.key, site.value)
    }
    group: list[PlannedWeight] = []
    for planned in wanted:
        if not any(planned.site.name.startswith(f"{module}.") for module in unit.modules):
            continue
        attention = projections.get(planned.site.name)
        if group and (attention is None or projections.get(group[-1].site.name) != attention):
            yield group
            group = []
        group.append(planned)
    if group:
        yield group


@contextmanager
def _rounding_weights(
    model: SamModel, plan: QuantizationPlan, compensated: Sequence[PlannedWeight]
) -> Iterator[None]:
    """Round weights in the forward pass while the block runs.

    Layers that are not compensated are rounded to nearest. The others stay float until they are compensated: no layer
    after them runs before.
    """
    inside = [planned for planned in plan.weights if planned.site.part in PAPER_PARTS]
    for planned in inside:
        if planned not in compensated:
            layer = layer_of(model, planned.site.name)
            _round_layer(
                layer, find_grid(layer.weight, planned.bits, CHANNEL_AXIS, plan.recipe), planned.bits
            )
    try:
        yield
    finally:
        for planned in inside:
            layer_of(model, planned.site.name).weight_quantizer = nn.Identity()


def _compensate_group(
    run: CompensationRun, unit: Unit, group: Sequence[PlannedWeight], plan: QuantizationPlan
) -> None:
    """Compensate layers of a unit that read the same activations."""
    spec = plan.recipe.compensation
    assert spec is not None
    names = [planned.site.name for planned in group]
    sites = [site for site in plan.structure.decoder_attentions if site.query in names and spec.queries]
    sums = run.input_sums(unit, names)
    for planned in group:
        if not sites or planned.site.name != sites[0].query:
            _compensate_layer(run.model, planned, sums[planned.site.name], plan)
    for site in sites:
        # Queries make up for the error of the keys that they meet, so keys come first.
        change = correct_queries(run.logit_sums(unit, site), spec.damping)
        query = next(planned for planned in group if planned.site.name == site.query)
        _compensate_layer(run.model, query, sums[site.query], plan, change)


def _compensate_layer(
    model: SamModel,
    planned: PlannedWeight,
    sums: InputSums,
    plan: QuantizationPlan,
    change: Tensor | None = None,
) -> None:
    """Correct the weight of a layer, choose its grid, and round it with compensation.

    Args:
        model: Model with the layer.
        planned: The layer.
        sums: Sums over its inputs.
        plan: Quantization plan.
        change: Correction of weight and bias, float64 [C, K + 1], in place of that by the layer's own output.
    """
    spec = plan.recipe.compensation
    assert spec is not None
    site, bits = planned
    layer = layer_of(model, site.name)
    start = layer.weight.flatten(1).double().cpu()
    corrected = start
    if change is not None:
        corrected = start + change[:, :-1]
    elif spec.inputs:
        corrected = correct_weight(start, sums, spec.damping, centered=layer.bias is not None)
    _set_rows(layer, corrected)
    grid = layer.weight_grid = find_grid(layer.weight, bits, CHANNEL_AXIS, plan.recipe)
    if spec.rounding:
        squares, _ = sums.moments(centered=layer.bias is not None)
        _set_rows(layer, compensated_rounding(corrected, *grid, bits, squares, spec.damping))
    _round_layer(layer, grid, bits)
    if layer.bias is None:
        return
    codes = layer.weight_quantizer(layer.weight).flatten(1)
    if change is None:
        bias = matching_bias(layer.bias, start, codes, sums)
    else:
        # Corrected queries have the mean that they should have; rounding must not move it.
        lost = (corrected - codes.double().cpu()) @ (sums.quantized / sums.count)
        bias = layer.bias.double().cpu() + change[:, -1] + lost
    layer.bias.copy_(bias.to(layer.bias).half())  # a checkpoint stores float16


def _round_layer(layer: CompensatedLayer, grid: Grid, bits: int) -> None:
    layer.weight_quantizer = GridRounding(grid, bits, CHANNEL_AXIS)


def _set_rows(layer: CompensatedLayer, rows: Tensor) -> None:
    """Give a layer a weight with new storage, from its rows [C, K]."""
    layer.weight.data = rows.to(layer.weight).reshape(layer.weight.shape)
