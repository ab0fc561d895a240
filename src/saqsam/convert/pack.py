"""Replace float weights by packed integer codes, and build the same modules empty for loading."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.image_positions import place_image_positions
from saqsam.convert.plan import QuantizationPlan, plan_quantization
from saqsam.convert.position_embedding import (
    CHANNEL_AXIS,
    packed_position_embedding,
    place_position_embedding,
    position_embedding,
    unpack_position_embedding,
)
from saqsam.convert.prepare import place_empty_quantizers, prepare
from saqsam.models.parts import PATCH_EMBEDDING
from saqsam.models.structure import Site, replace_module
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import (
    Grid,
    PackedLayer,
    PackedTensor,
    channel_axis,
    to_packed_layer,
)
from saqsam.quant.ranges import group_parameters, weight_parameters
from saqsam.recipes.recipe import Recipe
from saqsam.utils.progress import Progress


@torch.no_grad()
def round_float_parameters(model: SamModel, plan: QuantizationPlan) -> None:
    """Round parameters that stay float to float16, as a checkpoint stores them.

    A model is measured with the parameters that its checkpoint will hold. The parameters get new storage, so that
    another model that shares the old one stays as it is.

    Raises:
        ValueError: A value is not finite, or lies outside float16.
    """
    packed = {f"{site.name}.weight" for site, _ in plan.weights}
    if plan.position_bits is not None and plan.structure.position_embedding is not None:
        packed.add(plan.structure.position_embedding)
    stored = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
    for name, parameter in (*model.named_parameters(), *buffers):
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{name} holds NaN or infinity")
        if name in packed:
            continue
        rounded = parameter.half()
        if not torch.isfinite(rounded).all():
            raise ValueError(f"{name} holds {float(parameter.abs().max()):g}, which float16 cannot store")
        parameter.data = rounded.to(parameter.dtype)


def pack(model: SamModel, plan: QuantizationPlan, progress: Progress | None = None) -> None:
    """Replace float weights by packed codes in place, by round-to-nearest.

    Layers that reconstruction has packed stay unchanged.
    """
    sites = plan.weights
    if progress is not None:
        progress("packing weights", 0, len(sites))
    for step, (site, bits) in enumerate(sites):
        layer = model.get_submodule(site.name)
        if not isinstance(layer, PackedLayer):  # a reconstructed unit is packed already
            pack_layer(model, site.name, round_weight(layer, bits, plan.recipe))
        if progress is not None:
            progress("packing weights", step + 1, len(sites))
    pack_embeddings(model, plan)
    if plan.recipe.integer_biases:
        round_biases(model, plan)
    plan.family.share_image(model)
    model.requires_grad_(False)


@torch.no_grad()
def round_biases(model: SamModel, plan: QuantizationPlan) -> None:
    """Round the biases of packed layers to multiples of input scale times weight scale, in place.

    Integer kernels add biases to sums of products of codes. Layers with float inputs keep their biases. A checkpoint
    stores float16, so biases are rounded to the multiples nearest to their float16 values, which loading finds again.
    """
    for site, _ in plan.weights:
        layer = model.get_submodule(site.name)
        assert isinstance(layer, PackedLayer)
        if layer.bias is not None and isinstance(layer.input_quantizer, AffineQuantizer):
            step = layer.input_quantizer.scale * layer.weight.scale
            stored = (torch.round(layer.bias / step) * step).half()
            layer.bias.copy_(torch.round(stored.float() / step) * step)


def pack_without_calibration(model: SamModel, recipe: Recipe, progress: Progress | None = None) -> None:
    """Quantize the weights of a float model in place, by a recipe whose activations stay float.

    Args:
        model: Float model.
        recipe: Weight-only recipe.
        progress: Progress callback.

    Raises:
        ValueError: The recipe needs calibration images, or a value of the model is not finite or beyond float16.
    """
    check_needs_no_calibration(recipe)
    plan = plan_quantization(model.config, recipe)
    plan.structure.check(model)
    plan.family.simplify(model)
    round_float_parameters(model, plan)
    prepare(model, plan)
    pack(model, plan, progress)


def check_needs_no_calibration(recipe: Recipe) -> None:
    """Raise ValueError unless a recipe leaves activations float."""
    if recipe.needs_calibration:
        raise ValueError(
            f"the recipe {recipe.name} needs calibration images: use saqsam.quantize, or a weight-only recipe"
        )


def pack_embeddings(model: SamModel, plan: QuantizationPlan) -> None:
    """Pack the patch and position embeddings in place, where the recipe quantizes them.

    The blocks after them can then be learned on their quantized outputs. Embeddings that are packed stay unchanged.
    """
    recipe, structure = plan.recipe, plan.structure
    for site, weight_bits in plan.weights:
        layer = model.get_submodule(site.name)
        if site.part == PATCH_EMBEDDING and not isinstance(layer, PackedLayer):
            pack_layer(model, site.name, round_weight(layer, weight_bits, recipe))
    bits, values = plan.position_bits, position_embedding(model, structure)
    if bits is not None and values is not None and packed_position_embedding(model, structure) is None:
        packed = _pack_tensor(values.detach(), bits, CHANNEL_AXIS, recipe)
        place_position_embedding(model, structure, packed)
        unpack_position_embedding(model, structure)


def round_weight(layer: nn.Module, bits: int, recipe: Recipe) -> PackedTensor:
    """Return the weight of a float or prepared layer as codes, by round-to-nearest on its grid."""
    assert isinstance(layer.weight, Tensor)
    grid: Grid | None = getattr(layer, "weight_grid", None)
    if grid is None:
        return _pack_tensor(layer.weight, bits, channel_axis(layer), recipe)
    return PackedTensor.from_float(layer.weight, *grid, bits, channel_axis(layer))


def find_grid(values: Tensor, bits: int, axis: int, recipe: Recipe) -> Grid:
    """Return the scale and zero point of each channel of a weight by the recipe's rule; group-wise, of each group.

    Args:
        values: The weight.
        bits: 2 to 8.
        axis: Channel axis.
        recipe: Recipe of the run.

    Returns:
        Scale and zero point, float32 [C] each; group-wise [C, G].
    """
    rows = values.detach().float().movedim(axis, 0).flatten(1)
    options: dict[str, Any] = {
        "symmetric": recipe.weights.is_symmetric(bits),
        "method": recipe.weights.range,
        "percentile": recipe.calibration.percentile,
        "power": recipe.calibration.power,
    }
    if recipe.weights.group_size is None:
        return weight_parameters(rows, bits, **options)
    return group_parameters(rows, recipe.weights.group_size, bits, **options)


def pack_layer(model: SamModel, name: str, weight: PackedTensor) -> None:
    """Replace a prepared layer, by name, by its packed form."""
    layer = model.get_submodule(name)
    assert isinstance(layer.input_quantizer, nn.Module)
    replace_module(model, name, to_packed_layer(layer, weight, layer.input_quantizer).train(layer.training))


def place_empty_weight(model: SamModel, site: Site, bits: int, group_size: int | None = None) -> None:
    """Replace a prepared layer by a packed one with codes to be loaded."""
    layer = model.get_submodule(site.name)
    assert isinstance(layer.weight, Tensor)
    empty = PackedTensor(tuple(layer.weight.shape), bits, channel_axis(layer), group_size)
    pack_layer(model, site.name, empty.to(model.device))


def build_packed_skeleton(model: SamModel, plan: QuantizationPlan) -> None:
    """Give a float model, usually on the meta device, the modules of a packed one, with values to be loaded."""
    plan.family.simplify(model)
    prepare(model, plan)
    place_empty_quantizers(model, plan)
    for site, bits in plan.weights:
        place_empty_weight(model, site, bits, plan.recipe.weights.group_size)
    values = position_embedding(model, plan.structure)
    if plan.position_bits is not None and values is not None:
        packed = PackedTensor(
            tuple(values.shape), plan.position_bits, CHANNEL_AXIS, plan.recipe.weights.group_size
        )
        place_position_embedding(model, plan.structure, packed.to(model.device))
    plan.family.share_image(model)
    model.requires_grad_(False)


def complete_loading(model: SamModel, plan: QuantizationPlan) -> None:
    """Compute the values that a checkpoint does not store from its tensors, in place."""
    unpack_position_embedding(model, plan.structure)
    place_image_positions(model, plan)
    if plan.recipe.integer_biases:
        round_biases(model, plan)


def _pack_tensor(values: Tensor, bits: int, axis: int, recipe: Recipe) -> PackedTensor:
    grid = find_grid(values, bits, axis, recipe)
    return PackedTensor.from_float(values, *grid, bits, axis, recipe.weights.group_size)
