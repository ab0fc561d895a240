"""Inventory of a quantized model: bits, parameters, bytes and multiply-accumulates (MACs) of each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import SamConfig, SamModel

from saqsam.analysis.macs import count_macs
from saqsam.checkpoint import checkpoint_tensors, recipe_of
from saqsam.models.parts import DEPTHWISE, MASK_PRODUCT, OTHER, PARTS, RELATIVE_POSITIONS
from saqsam.models.registry import family_of, structure_of
from saqsam.models.structure import ModelStructure
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedTensor
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.quant.tables import TableQuantizer
from saqsam.recipes.recipe import ATTENTION_PARTS, Recipe

# Kinds of stored tensors by the last component of their names; all others are float16 parameters.
_KINDS = {"codes": "codes", "scale": "scales", "zero_point": "scales", "tau": "scales", "levels": "scales"}


@dataclass(frozen=True)
class PartInventory:
    """One part of a quantized model.

    Attributes:
        part: Name of the part: one of `models.parts.PARTS`, `depthwise`, `relative_positions`, `mask_product`,
            or `other`.
        weight_bits: Bits of the weights; None if they are float or there are none.
        activation_bits: Bits of the activations; None if they are float.
        parameters: Number of weights and biases.
        packed: Number of weights that are stored as codes.
        code_bytes: Bytes of codes in the checkpoint.
        scale_bytes: Bytes of scales, zero points and tables of levels, including those of activations.
        float_bytes: Bytes of float16 parameters, including biases.
        macs: Multiply-accumulates for one image and one box prompt.
        low: Lowest end of all activation ranges; None if there are none.
        high: Highest end of all activation ranges; None if there are none.
        probability_bits: Bits of the attention probabilities; None if they are float or there are none.
        probability_macs: Multiply-accumulates with a probability as an operand; `macs` include them.
    """

    part: str
    weight_bits: int | None
    activation_bits: int | None
    parameters: int
    packed: int
    code_bytes: int
    scale_bytes: int
    float_bytes: int
    macs: int
    low: float | None = None
    high: float | None = None
    probability_bits: int | None = None
    probability_macs: int = 0

    @property
    def bytes(self) -> int:
        """Total bytes of the part in the checkpoint."""
        return self.code_bytes + self.scale_bytes + self.float_bytes


@dataclass(frozen=True)
class Inventory:
    """Inventory of a quantized model, as `saqsam inspect` prints it.

    Attributes:
        recipe: The recipe.
        name: Name of the recipe, with its mean bits for mixed precision (`mixed_name`).
        parts: One entry per part of the model.
        float32_bytes: Bytes of the parameters in float32.
    """

    recipe: Recipe
    name: str
    parts: tuple[PartInventory, ...]
    float32_bytes: int

    @property
    def bytes(self) -> int:
        """Total bytes of all tensors in the checkpoint."""
        return sum(part.bytes for part in self.parts)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image and one box prompt."""
        return sum(part.macs for part in self.parts)

    def share_of_bytes(self) -> dict[str, float]:
        """Return the fraction of the checkpoint's bytes by content: codes (`w4`, ...), `scales` or `float16`."""
        return _shares(
            pair
            for part in self.parts
            for pair in (
                (f"w{part.weight_bits}", part.code_bytes),
                ("scales", part.scale_bytes),
                ("float16", part.float_bytes),
            )
        )

    def share_of_macs(self) -> dict[str, float]:
        """Return the fraction of the MACs by bits of the operands, such as `w4a4` or `float`."""
        return _shares((width, macs) for part in self.parts for width, macs, _ in _macs_by_width(part))

    def to_dict(self) -> dict[str, Any]:
        """Return the inventory as plain JSON types."""
        return {
            "name": self.name,
            "recipe": self.recipe.to_dict(),
            "bytes": self.bytes,
            "float32_bytes": self.float32_bytes,
            "macs": self.macs,
            "share_of_bytes": self.share_of_bytes(),
            "share_of_macs": self.share_of_macs(),
            "parts": [{**asdict(part), "bytes": part.bytes} for part in self.parts],
        }


def mac_width(part: PartInventory) -> str:
    """Return the operand bits of a part: `w4a4`, `a4a4` for attention, `w8` for float activations, or `float`."""
    if part.weight_bits is None and part.activation_bits is None:
        return "float"
    if part.weight_bits is None:
        return f"a{part.activation_bits}a{part.activation_bits}"
    return f"w{part.weight_bits}" + ("" if part.activation_bits is None else f"a{part.activation_bits}")


def _macs_by_width(part: PartInventory) -> list[tuple[str, int, float | None]]:
    """Return the operand bits, the MACs and the mean activation bits of each kind of product of a part."""
    bits, own = part.activation_bits, part.probability_bits
    attention = 2 * part.probability_macs  # queries times keys take as many
    if bits is not None and own is None and 0 < attention < part.macs:
        return [(mac_width(part), part.macs - attention, bits), ("float", attention, None)]
    if bits is None or own is None or own == bits:
        return [(mac_width(part), part.macs, bits)]
    rest = part.macs - part.probability_macs
    return [(mac_width(part), rest, bits), (f"a{own}a{bits}", part.probability_macs, (own + bits) / 2)]


def _shares(counted: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Return each key's fraction of the total, largest first."""
    totals: Counter[str] = Counter()
    for key, count in counted:
        totals[key] += count
    return {key: count / totals.total() for key, count in totals.most_common() if count}


def take_inventory(model: SamModel) -> Inventory:
    """Return the inventory of a quantized model.

    Raises:
        ValueError: The model is float.
    """
    recipe = recipe_of(model)
    structure = structure_of(model.config)
    part_of = _owner(structure)
    macs = count_macs(model.config)
    parameters = _count_parameters(model.config, part_of)
    ranges = _activation_ranges(model, part_of)
    packed, sizes = _count_stored(model, part_of)
    parts = []
    for part in (*PARTS, DEPTHWISE, RELATIVE_POSITIONS, MASK_PRODUCT, OTHER):
        if not (parameters[part] or macs.parts[part]):
            continue
        weight_bits, activation_bits = recipe.bits_of(part) if part in PARTS else (None, None)
        low, high = ranges.get(part, (None, None))
        parts.append(
            PartInventory(
                part=part,
                weight_bits=weight_bits if packed[part] else None,
                activation_bits=activation_bits,
                parameters=parameters[part],
                packed=packed[part],
                code_bytes=sizes[part, "codes"],
                scale_bytes=sizes[part, "scales"],
                float_bytes=sizes[part, "floats"],
                macs=macs.parts[part],
                low=low,
                high=high,
                probability_bits=recipe.probability_bits(part) if part in ATTENTION_PARTS else None,
                probability_macs=macs.probabilities[part],
            )
        )
    return Inventory(recipe, mixed_name(recipe, parts), tuple(parts), 4 * parameters.total())


def mixed_name(recipe: Recipe, parts: Sequence[PartInventory]) -> str:
    """Return the name of a recipe, with mean bits if it ends in `-mixed`: `mse-w4a4-mixed-w4.31a4.05`.

    Weight bits are averaged over all weights that are stored as codes, activation bits over all multiply-accumulates
    with quantized activations.
    """
    if not recipe.name.endswith("-mixed"):
        return recipe.name
    weights = _mean((part.weight_bits, part.packed) for part in parts)
    activations = _mean((bits, macs) for part in parts for _, macs, bits in _macs_by_width(part))
    return f"{recipe.name}-w{weights:.2f}a{activations:.2f}"


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float:
    known = [(bits, weight) for bits, weight in weighted if bits is not None]
    return sum(bits * weight for bits, weight in known) / sum(weight for _, weight in known)


def _count_parameters(config: SamConfig, part_of: Callable[[str], str]) -> Counter[str]:
    """Count the parameters of the float model by part; the tied positional embedding counts once."""
    with torch.device("meta"):
        skeleton = family_of(config).build(config)
    counts: Counter[str] = Counter()
    for name, parameter in skeleton.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


def _count_stored(
    model: SamModel, part_of: Callable[[str], str]
) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Count the weights stored as codes by part, and the bytes by part and kind: `codes`, `scales` or `floats`."""
    packed: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, PackedTensor):
            packed[part_of(f"{name}.codes")] += module.shape.numel()
    sizes: Counter[tuple[str, str]] = Counter()
    for name, tensor in checkpoint_tensors(model).items():
        kind = _KINDS.get(name.rpartition(".")[2], "floats")
        sizes[part_of(name), kind] += tensor.numel() * tensor.element_size()
    return packed, sizes


def _owner(structure: ModelStructure) -> Callable[[str], str]:
    """Return a function that maps the name of a tensor to its part."""
    layers = {site.name: site.part for site in (*structure.weighted_sites, *structure.unquantized)}
    attentions = {site.name: site.part for site in structure.attentions}
    positions: tuple[str, ...] = ()
    if structure.position_embedding is not None:
        parent, _, embedding = structure.position_embedding.rpartition(".")
        positions = (structure.position_embedding, f"{parent}.packed_{embedding}")

    def part_of(name: str) -> str:
        if name.startswith(positions):
            return "position_embedding"
        module = name
        while module:
            if module in layers:
                return layers[module]
            if module in attentions and "rel_pos" not in name:
                return attentions[module]
            module = module.rpartition(".")[0]
        return RELATIVE_POSITIONS if "rel_pos" in name else OTHER

    return part_of


def _activation_ranges(model: SamModel, part_of: Callable[[str], str]) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest end of the activation ranges of each part."""
    ranges: dict[str, tuple[float, float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (AffineQuantizer, LogQuantizer, TableQuantizer)):
            part, (low, high) = part_of(name), module.range
            known_low, known_high = ranges.get(part, (low, high))
            ranges[part] = min(low, known_low), max(high, known_high)
    return ranges
