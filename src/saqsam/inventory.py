"""What of a model is quantized to how many bits: parameters, bytes and multiply-accumulates of each part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

from saqsam.checkpoint import checkpoint_tensors, recipe_of
from saqsam.models.structure import PARTS, SamStructure
from saqsam.quant.affine import AffineQuantizer
from saqsam.recipe import Recipe

FLOAT_BITS = 16
"""What a checkpoint stores of a float parameter."""

OTHER = "other"
RELATIVE_POSITIONS = "relative_positions"
MASK_PRODUCT = "mask_product"


@dataclass(frozen=True)
class PartInventory:
    """One part of a quantized model.

    Attributes:
        part: Name, see `models.structure.PARTS`; `other` for what is left.
        weight_bits: Bits of its weights, None where they are float or there are none.
        activation_bits: Bits of its activations, None where they are float.
        parameters: Number of weights and biases.
        bytes: What they take in the checkpoint, with scales and zero points.
        macs: Multiply-accumulates for one image and one box prompt.
        low: Lowest end of the activation ranges, None where there are none.
        high: Highest end.
    """

    part: str
    weight_bits: int | None
    activation_bits: int | None
    parameters: int
    bytes: int
    macs: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Inventory:
    """What `saqsam inspect` shows.

    Attributes:
        recipe: The recipe.
        name: The recipe's name; with the mean bits of its quantized weights where it is mixed.
        parts: One entry per part that the model has.
        float32_bytes: What the parameters take as float32.
    """

    recipe: Recipe
    name: str
    parts: tuple[PartInventory, ...]
    float32_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of all tensors in the checkpoint."""
        return sum(part.bytes for part in self.parts)

    def share_of_bytes(self) -> dict[str, float]:
        """Share of the checkpoint's bytes at each width of weights, such as `w4` or `float16`."""
        return _shares((_width("w", part.weight_bits), part.bytes) for part in self.parts)

    def share_of_macs(self) -> dict[str, float]:
        """Share of the multiply-accumulates at each pair of widths, such as `w4a4` or `float`."""
        return _shares((mac_width(part), part.macs) for part in self.parts)


def mac_width(part: PartInventory) -> str:
    """Widths of the operands of a part's products: `w4a4`, `a4a4` for attention, `w8` weights only, or `float`."""
    if part.weight_bits is None and part.activation_bits is None:
        return "float"
    if part.weight_bits is None:
        return f"a{part.activation_bits}a{part.activation_bits}"
    return f"w{part.weight_bits}" + ("" if part.activation_bits is None else f"a{part.activation_bits}")


def _width(kind: str, bits: int | None) -> str:
    return f"float{FLOAT_BITS}" if bits is None else f"{kind}{bits}"


def _shares(counted: Any) -> dict[str, float]:
    totals: dict[str, int] = {}
    for key, count in counted:
        totals[key] = totals.get(key, 0) + count
    whole = sum(totals.values())
    return {key: count / whole for key, count in sorted(totals.items(), key=lambda item: -item[1]) if count}


def take_inventory(model: SamModel) -> Inventory:
    """Count the parts of a quantized model.

    Raises:
        ValueError: If the model is float.
    """
    recipe = recipe_of(model)
    structure = SamStructure(model.config)
    macs = count_macs(model.config)
    part_of = _owner(structure)
    stored = checkpoint_tensors(model)
    sizes: dict[str, int] = {}
    for name, tensor in stored.items():
        part = part_of(name)
        sizes[part] = sizes.get(part, 0) + tensor.numel() * tensor.element_size()
    parameters: dict[str, int] = {}
    with torch.device("meta"):
        skeleton = SamModel(model.config)
    for name, parameter in skeleton.named_parameters():
        part = part_of(name)
        parameters[part] = parameters.get(part, 0) + parameter.numel()
    ranges = _activation_ranges(model, part_of)
    parts = []
    for part in (*PARTS, RELATIVE_POSITIONS, MASK_PRODUCT, OTHER):
        if not (parameters.get(part) or macs.get(part)):
            continue
        bits = recipe.bits_of(part) if part in PARTS else (None, None)
        has_weights = part != "encoder.attention"
        low, high = ranges.get(part, (None, None))
        parts.append(
            PartInventory(
                part=part,
                weight_bits=bits[0] if has_weights else None,
                activation_bits=bits[1],
                parameters=parameters.get(part, 0),
                bytes=sizes.get(part, 0),
                macs=macs.get(part, 0),
                low=low,
                high=high,
            )
        )
    total = sum(parameters.values())
    return Inventory(recipe, mixed_name(recipe, parts), tuple(parts), total * 4)


def mixed_name(recipe: Recipe, parts: list[PartInventory]) -> str:
    """The recipe's name; a mixed one carries the mean bits of all weights that it quantizes: `mse-w4a4-mixed-4.3`."""
    if not recipe.name.endswith("-mixed"):
        return recipe.name
    quantized = [part for part in parts if part.weight_bits is not None]
    bits = sum(part.parameters * (part.weight_bits or 0) for part in quantized)
    mean = bits / max(1, sum(part.parameters for part in quantized))
    return f"{recipe.name}-{mean:.2f}"


def _owner(structure: SamStructure) -> Callable[[str], str]:
    """A function from a tensor's name to its part."""
    layers = {site.name: site.part for site in [*structure.layers, *structure.float_layers]}
    attentions = {site.name: site.part for site in structure.attentions}

    def part_of(name: str) -> str:
        if name.startswith((structure.position_embedding, "vision_encoder.packed_pos_embed")):
            return "position_embedding"
        module = name
        while module:
            module = module.rpartition(".")[0]
            if module in layers:
                return layers[module]
            if module in attentions and "rel_pos" not in name:
                return attentions[module]
        return RELATIVE_POSITIONS if "rel_pos" in name else OTHER

    return part_of


def _activation_ranges(model: SamModel, part_of: Callable[[str], str]) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, AffineQuantizer):
            low, high = module.range
            known = ranges.get(part_of(name + ".scale"), (math.inf, -math.inf))
            ranges[part_of(name + ".scale")] = (min(low, known[0]), max(high, known[1]))
    return ranges


def count_macs(config: SamConfig, prompts: int = 1) -> dict[str, int]:
    """Multiply-accumulates of each part for one image and a number of box prompts.

    Counted on a float model of this configuration that holds no data. Softmax, normalisation and other elementwise
    work is not counted, and neither is the prompt encoder.

    Args:
        config: Configuration of the model.
        prompts: Number of box prompts.

    Returns:
        Multiply-accumulates by part, with `relative_positions` and `mask_product` for those two products.
    """
    structure = SamStructure(config)
    counts: dict[str, int] = {}

    def add(part: str, count: int) -> None:
        counts[part] = counts.get(part, 0) + count

    def count_layer(part: str) -> Callable[..., None]:
        def hook(layer: Any, _: Any, output: torch.Tensor) -> None:
            if isinstance(layer, nn.Linear):
                add(part, output.numel() * layer.in_features)
            elif isinstance(layer, nn.ConvTranspose2d):
                # Stride equals the kernel size: every output value is one sum over the input channels.
                add(part, output.numel() * layer.in_channels)
            else:
                add(part, output.numel() * layer.weight[0].numel())

        return hook

    def count_vision_attention(part: str) -> Callable[..., None]:
        def hook(attention: SamVisionAttention, _: Any, kwargs: dict[str, Any], __: Any) -> None:
            batch, height, width, channels = kwargs["hidden_states"].shape
            tokens = height * width
            add(part, 2 * batch * tokens * tokens * channels)
            if attention.use_rel_pos:
                add(RELATIVE_POSITIONS, batch * tokens * (height + width) * channels)

        return hook

    def count_decoder_attention(part: str) -> Callable[..., None]:
        def hook(attention: SamAttention, _: Any, kwargs: dict[str, Any], __: Any) -> None:
            query, key = kwargs["query"], kwargs["key"]
            add(part, 2 * query.shape[:3].numel() * key.shape[2] * attention.internal_dim)

        return hook

    with torch.device("meta"), torch.inference_mode():
        model = SamModel(config).eval()
        for site in [*structure.layers, *structure.float_layers]:
            model.get_submodule(site.name).register_forward_hook(count_layer(site.part))
        for site in structure.attentions:
            module = model.get_submodule(site.name)
            is_vision = isinstance(module, SamVisionAttention)
            count = count_vision_attention if is_vision else count_decoder_attention
            module.register_forward_hook(count(site.part), with_kwargs=True)
        vision = config.vision_config
        pixels = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)
        output = model(pixel_values=pixels, input_boxes=torch.zeros(1, prompts, 4), multimask_output=False)
    masks = config.mask_decoder_config.num_multimask_outputs + 1
    side = output.pred_masks.shape[-1]
    add(MASK_PRODUCT, prompts * masks * side * side * (config.mask_decoder_config.hidden_size // 8))
    return counts
