"""Replace float weights by packed integer codes, and build the same modules empty for loading."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.plan import weight_sites
from saqsam.convert.position_embedding import (
    CHANNEL_AXIS,
    packed_position_embedding,
    place_position_embedding,
    position_embedding,
    unpack_position_embedding,
)
from saqsam.convert.prepare import place_empty_quantizers, prepare
from saqsam.models.family import replace_module
from saqsam.models.registry import structure_of
from saqsam.models.structure import ModelStructure, Site
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import (
    PackedLayer,
    PackedTensor,
    channel_axis,
    to_packed_layer,
)
from saqsam.quant.ranges import group_parameters, weight_parameters
from saqsam.recipes.recipe import Recipe
from saqsam.utils.progress import Progress


@torch.no_grad()
def round_float_parameters(model: SamModel, structure: ModelStructure, recipe: Recipe) -> None:
    """Round what stays float to float16 in place, as a checkpoint stores it: so that is what is measured.

    Raises:
        ValueError: If a value lies outside float16, or is not finite.
    """
    packed = {f"{site.name}.weight" for site, _ in weight_sites(structure, recipe)}
    if _position_embedding_bits(model, structure, recipe) is not None:
        packed.add(structure.position_embedding)
    for name, parameter in model.named_parameters():
        rounded = parameter.half()
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{name} holds NaN or infinity")
        if name in packed:
            continue
        if not torch.isfinite(rounded).all():
            raise ValueError(f"{name} holds {float(parameter.abs().max()):g}, which float16 cannot store")
        parameter.copy_(rounded)


def pack(
    model: SamModel, structure: ModelStructure, recipe: Recipe, progress: Progress | None = None
) -> None:
    """Replace what has float weights by packed codes, rounding to nearest, in place."""
    sites = list(weight_sites(structure, recipe))
    for step, (site, bits) in enumerate(sites):
        layer = model.get_submodule(site.name)
        if not isinstance(layer, PackedLayer):  # a reconstructed unit is packed already
            pack_layer(model, site.name, round_weight(layer, bits, recipe))
        if progress is not None:
            progress("packing weights", step + 1, len(sites))
    pack_embeddings(model, recipe)
    if recipe.integer_biases:
        round_biases(model, structure, recipe)
    model.requires_grad_(False)


@torch.no_grad()
def round_biases(model: SamModel, structure: ModelStructure, recipe: Recipe) -> None:
    """Round the biases of packed layers to multiples of their products' step, in place.

    Integer kernels add biases to sums of products of codes. Without rounded inputs there is no such step. A checkpoint
    stores float16, so the multiples are those that are nearest to what it stores, and loading finds them again.
    """
    for site, _ in weight_sites(structure, recipe):
        layer = model.get_submodule(site.name)
        assert isinstance(layer, PackedLayer)
        if layer.bias is not None and isinstance(layer.input_quantizer, AffineQuantizer):
            step = layer.input_quantizer.scale * layer.weight.scale
            stored = (torch.round(layer.bias / step) * step).half()
            layer.bias.copy_(torch.round(stored.float() / step) * step)


def pack_without_calibration(model: SamModel, recipe: Recipe) -> None:
    """Quantize the weights of a float model in place, by a recipe whose activations stay float.

    Raises:
        ValueError: The recipe needs calibration images, or a value of the model is not finite or beyond float16.
    """
    check_needs_no_calibration(recipe)
    structure = structure_of(model.config)
    structure.check(model)
    round_float_parameters(model, structure, recipe)
    prepare(model, structure, recipe)
    pack(model, structure, recipe)


def check_needs_no_calibration(recipe: Recipe) -> None:
    """Raise ValueError unless a recipe leaves activations float."""
    if recipe.needs_calibration:
        raise ValueError(
            f"the recipe {recipe.name} needs calibration images: use saqsam.quantize, or a weight-only recipe"
        )


def pack_embeddings(model: SamModel, recipe: Recipe) -> None:
    """Pack what comes before the first block: patch and position embedding, where the recipe quantizes them.

    What follows can then be learned on what they will give. Packed ones stay as they are.
    """
    bits = recipe.bits_of("patch_embedding")[0]
    structure = structure_of(model.config)
    layer = model.get_submodule(structure.patch_embedding)
    if bits is not None and not isinstance(layer, PackedLayer):
        pack_layer(model, structure.patch_embedding, round_weight(layer, bits, recipe))
    bits = _position_embedding_bits(model, structure, recipe)
    if bits is not None and packed_position_embedding(model, structure) is None:
        values = position_embedding(model, structure)
        assert values is not None
        packed = _pack_tensor(values.detach(), bits, CHANNEL_AXIS, recipe)
        place_position_embedding(model, structure, packed)
        unpack_position_embedding(model, structure)


def round_weight(layer: nn.Module, bits: int, recipe: Recipe) -> PackedTensor:
    """The weight of a float or quant layer on its grid, rounded to nearest."""
    assert isinstance(layer.weight, Tensor)
    return _pack_tensor(layer.weight, bits, channel_axis(layer), recipe)


def pack_layer(model: SamModel, name: str, weight: PackedTensor) -> None:
    """Put the packed form of the quant layer called `name` in its place."""
    layer = model.get_submodule(name)
    assert isinstance(layer.input_quantizer, nn.Module)
    replace_module(model, name, to_packed_layer(layer, weight, layer.input_quantizer).train(layer.training))


def place_empty_weight(model: SamModel, site: Site, bits: int, group_size: int | None = None) -> None:
    """Put a packed layer whose codes are yet to load in the place of a quant layer."""
    layer = model.get_submodule(site.name)
    assert isinstance(layer.weight, Tensor)
    empty = PackedTensor(tuple(layer.weight.shape), bits, channel_axis(layer), group_size)
    pack_layer(model, site.name, empty.to(model.device))


def build_packed_skeleton(model: SamModel, structure: ModelStructure, recipe: Recipe) -> None:
    """Give a model, usually on the meta device, the modules that `pack` leaves, their values yet to load."""
    prepare(model, structure, recipe)
    place_empty_quantizers(model, structure, recipe)
    for site, bits in weight_sites(structure, recipe):
        place_empty_weight(model, site, bits, recipe.weights.group_size)
    position_bits = _position_embedding_bits(model, structure, recipe)
    values = position_embedding(model, structure)
    if position_bits is not None and values is not None:
        packed = PackedTensor(tuple(values.shape), position_bits, CHANNEL_AXIS, recipe.weights.group_size)
        place_position_embedding(model, structure, packed.to(model.device))
    model.requires_grad_(False)


def complete_loading(model: SamModel, structure: ModelStructure, recipe: Recipe) -> None:
    """What follows from a checkpoint's tensors without being stored, in place."""
    unpack_position_embedding(model, structure)
    if recipe.integer_biases:
        round_biases(model, structure, recipe)


def _pack_tensor(values: Tensor, bits: int, axis: int, recipe: Recipe) -> PackedTensor:
    rows = values.detach().float().movedim(axis, 0).flatten(1)
    options: dict[str, Any] = {
        "symmetric": recipe.weights.is_symmetric(bits),
        "method": recipe.weights.range,
        "percentile": recipe.calibration.percentile,
        "power": recipe.calibration.power,
    }
    group_size = recipe.weights.group_size
    if group_size is None:
        steps = weight_parameters(rows, bits, **options)
    else:
        steps = group_parameters(rows, group_size, bits, **options)
    return PackedTensor.from_float(values, *steps, bits, axis, group_size)


def _position_embedding_bits(model: SamModel, structure: ModelStructure, recipe: Recipe) -> int | None:
    """Return the bits of the encoder's absolute position embedding; None if it stays float or the model has none."""
    if position_embedding(model, structure) is None:
        return None
    return recipe.bits_of("position_embedding")[0]
