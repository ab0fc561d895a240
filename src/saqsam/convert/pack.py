"""Replace float weights by packed integer codes, and build the same modules empty for loading."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.convert.plan import weight_sites
from saqsam.convert.prepare import Progress, place_empty_quantizers, prepare
from saqsam.models.sam.structure import PATCH_EMBEDDING, SamStructure, Site, replace_module
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import (
    PackedLayer,
    PackedTensor,
    channel_axis,
    to_packed_layer,
)
from saqsam.quant.ranges import group_parameters, weight_parameters
from saqsam.recipes.recipe import Recipe


@torch.no_grad()
def round_float_parameters(model: SamModel, structure: SamStructure, recipe: Recipe) -> None:
    """Round what stays float to float16 in place, as a checkpoint stores it: so that is what is measured.

    Raises:
        ValueError: If a value lies outside float16, or is not finite.
    """
    packed = {f"{site.name}.weight" for site, _ in weight_sites(structure, recipe)}
    if _position_embedding_bits(model, recipe) is not None:
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


def pack(model: SamModel, structure: SamStructure, recipe: Recipe, progress: Progress | None = None) -> None:
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
def round_biases(model: SamModel, structure: SamStructure, recipe: Recipe) -> None:
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
    structure = SamStructure(model.config)
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
    layer = model.vision_encoder.patch_embed.projection
    if bits is not None and not isinstance(layer, PackedLayer):
        pack_layer(model, PATCH_EMBEDDING, round_weight(layer, bits, recipe))
    bits = _position_embedding_bits(model, recipe)
    if bits is not None and "packed_pos_embed" not in model.vision_encoder._modules:
        values = model.vision_encoder.pos_embed.detach()
        _place_position_embedding(model, _pack_tensor(values, bits, 3, recipe))
        unpack_position_embedding(model)


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


def build_packed_skeleton(model: SamModel, structure: SamStructure, recipe: Recipe) -> None:
    """Give a model, usually on the meta device, the modules that `pack` leaves, their values yet to load."""
    prepare(model, structure, recipe)
    place_empty_quantizers(model, structure, recipe)
    for site, bits in weight_sites(structure, recipe):
        place_empty_weight(model, site, bits, recipe.weights.group_size)
    bits_or_none = _position_embedding_bits(model, recipe)
    if bits_or_none is not None:
        shape = tuple(model.vision_encoder.pos_embed.shape)
        _place_position_embedding(
            model, PackedTensor(shape, bits_or_none, 3, recipe.weights.group_size).to(model.device)
        )
    model.requires_grad_(False)


def complete_loading(model: SamModel, structure: SamStructure, recipe: Recipe) -> None:
    """What follows from a checkpoint's tensors without being stored, in place."""
    unpack_position_embedding(model)
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


def _position_embedding_bits(model: SamModel, recipe: Recipe) -> int | None:
    """Return the bits of the encoder's absolute position embedding; None if it stays float or the model has none."""
    return None if model.vision_encoder.pos_embed is None else recipe.bits_of("position_embedding")[0]


def _place_position_embedding(model: SamModel, packed: PackedTensor) -> None:
    encoder = model.vision_encoder
    shape = encoder.pos_embed.shape
    del encoder.pos_embed
    encoder.packed_pos_embed = packed
    # The encoder adds `pos_embed` as a tensor; the buffer is computed from the codes and not stored.
    encoder.register_buffer("pos_embed", torch.zeros(shape, device=packed.codes.device), persistent=False)


def unpack_position_embedding(model: SamModel) -> None:
    """Compute the encoder's position embedding from its codes, where it has been packed."""
    packed = model.vision_encoder._modules.get("packed_pos_embed")
    if isinstance(packed, PackedTensor):
        model.vision_encoder.pos_embed = packed()
