"""From a float `SamModel` to one with quantizer slots, and from there to one of packed codes.

All three are `SamModel`s. What a module is says what state it is in: `nn.Linear` (float), `QuantLinear` with
`nn.Identity` in its slots (prepared), with `AffineQuantizer`s (calibrated), `PackedLinear` (quantized).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.models.attention import PROBABILITIES, SLOTS, to_quant_attention
from saqsam.models.structure import CONVOLUTIONS, PATCH_EMBEDDING, SamStructure, Site, replace_module
from saqsam.quant.affine import AffineQuantizer, DynamicQuantizer
from saqsam.quant.layers import (
    ChannelScale,
    PackedLayer,
    PackedTensor,
    QuantLinear,
    channel_axis,
    to_packed_layer,
    to_quant_layer,
)
from saqsam.quant.log import GranularityObserver, LogQuantizer
from saqsam.quant.observers import ChannelHistogramObserver, HistogramObserver
from saqsam.quant.ranges import activation_parameters, weight_parameters
from saqsam.recipe import Recipe

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the number of steps done, and their total."""

Observer = HistogramObserver | ChannelHistogramObserver | GranularityObserver
Quantizer = AffineQuantizer | DynamicQuantizer | LogQuantizer


LINEAR_CHANNELS, IMAGE_CHANNELS = -1, -3
"""Axis of the channels in a linear layer's input [..., K], and in a convolution's [B, K, H, W]."""


@dataclass(frozen=True)
class Slot:
    """A place for an activation quantizer: its module name, part and bits, and which kind of quantizer.

    Attributes:
        name: Module name.
        part: Part that it belongs to.
        bits: Bits.
        is_log: Whether it is logarithmic.
        dynamic_axis: Axis of the channels where it is dynamic, else None.
    """

    name: str
    part: str
    bits: int
    is_log: bool = False
    dynamic_axis: int | None = None


def activation_slots(structure: SamStructure, recipe: Recipe) -> Iterator[Slot]:
    """Every activation that the recipe quantizes."""
    for site in [*structure.layers, *structure.float_layers]:
        bits = recipe.bits_of(site.part)[1]
        if bits is not None:
            axis = None
            if recipe.activations.dynamic:
                axis = IMAGE_CHANNELS if site.part in CONVOLUTIONS else LINEAR_CHANNELS
            yield Slot(f"{site.name}.input_quantizer", site.part, bits, dynamic_axis=axis)
    for site in structure.attentions:
        bits = recipe.operand_bits(site.part)
        probability_bits = recipe.probability_bits(site.part)
        if bits is not None and probability_bits is not None:
            for slot in SLOTS:
                if slot == PROBABILITIES:
                    is_log = recipe.probabilities.kind == "log"
                    yield Slot(f"{site.name}.{slot}", site.part, probability_bits, is_log)
                else:
                    yield Slot(f"{site.name}.{slot}", site.part, bits)


def weight_sites(structure: SamStructure, recipe: Recipe) -> Iterator[tuple[Site, int]]:
    """Every layer whose weight the recipe quantizes, with its bits."""
    for site in [*structure.layers, *structure.float_layers]:
        bits = recipe.bits_of(site.part)[0]
        if bits is not None:
            yield site, bits


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


def prepare(model: SamModel, structure: SamStructure, recipe: Recipe) -> None:
    """Give every layer and attention of the recipe empty quantizer slots, in place; outputs do not change."""
    for site in structure.attentions:
        attention = model.get_submodule(site.name)
        new = to_quant_attention(
            attention,
            quantized_rel_pos_query=recipe.quantized_rel_pos_query,
            row_scaled=recipe.probabilities.scale == "row",
        )
        replace_module(model, site.name, new)
    for site, _ in weight_sites(structure, recipe):
        layer = to_quant_layer(model.get_submodule(site.name))
        if recipe.input_scales and site.name in structure.residual_readers:
            assert isinstance(layer, QuantLinear)
            layer.input_scale = ChannelScale(layer.in_features).to(layer.weight.device)
        replace_module(model, site.name, layer)


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
    structure: SamStructure,
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
        symmetric=recipe.activations.symmetric,
        method=recipe.activations.range,
        percentile=recipe.calibration.percentile,
        power=recipe.calibration.power,
    )
    return AffineQuantizer(slot.bits, scale, zero_point)


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


def place_empty_weight(model: SamModel, site: Site, bits: int) -> None:
    """Put a packed layer whose codes are yet to load in the place of a quant layer."""
    layer = model.get_submodule(site.name)
    assert isinstance(layer.weight, Tensor)
    empty = PackedTensor(tuple(layer.weight.shape), bits, channel_axis(layer))
    pack_layer(model, site.name, empty.to(model.device))


def build_packed_skeleton(model: SamModel, structure: SamStructure, recipe: Recipe) -> None:
    """Give a model, usually on the meta device, the modules that `pack` leaves, their values yet to load."""
    prepare(model, structure, recipe)
    place_empty_quantizers(model, structure, recipe)
    for site, bits in weight_sites(structure, recipe):
        place_empty_weight(model, site, bits)
    bits_or_none = _position_embedding_bits(model, recipe)
    if bits_or_none is not None:
        shape = tuple(model.vision_encoder.pos_embed.shape)
        _place_position_embedding(model, PackedTensor(shape, bits_or_none, 3).to(model.device))
    model.requires_grad_(False)


def complete_loading(model: SamModel, structure: SamStructure, recipe: Recipe) -> None:
    """What follows from a checkpoint's tensors without being stored, in place."""
    unpack_position_embedding(model)
    if recipe.integer_biases:
        round_biases(model, structure, recipe)


def place_empty_quantizers(model: SamModel, structure: SamStructure, recipe: Recipe) -> None:
    """Put a quantizer whose parameters are yet to load into every slot of a prepared model."""
    for slot in activation_slots(structure, recipe):
        empty = _dynamic(slot) or (LogQuantizer if slot.is_log else AffineQuantizer).empty(slot.bits)
        replace_module(model, slot.name, empty.to(model.device))


def _pack_tensor(values: Tensor, bits: int, axis: int, recipe: Recipe) -> PackedTensor:
    rows = values.detach().float().movedim(axis, 0).flatten(1)
    scale, zero_point = weight_parameters(
        rows,
        bits,
        symmetric=recipe.weights.is_symmetric(bits),
        method=recipe.weights.range,
        percentile=recipe.calibration.percentile,
        power=recipe.calibration.power,
    )
    return PackedTensor.from_float(values, scale, zero_point, bits, axis)


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
