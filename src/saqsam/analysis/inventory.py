"""What of a model is quantized to how many bits: parameters, bytes and multiply-accumulates of each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import SamConfig, SamModel

from saqsam.analysis.macs import count_macs
from saqsam.checkpoint import checkpoint_tensors, recipe_of
from saqsam.models.parts import MASK_PRODUCT, OTHER, PARTS, RELATIVE_POSITIONS
from saqsam.models.registry import family_of, structure_of
from saqsam.models.structure import ModelStructure
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedTensor
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.recipes.recipe import ATTENTION_PARTS, Recipe

# What the last part of a stored tensor's name says of it; all else is a float16 parameter.
_KINDS = {"codes": "codes", "scale": "scales", "zero_point": "scales", "tau": "scales"}


@dataclass(frozen=True)
class PartInventory:
    """One part of a quantized model.

    Attributes:
        part: Name, see `models.structure.PARTS`; or `relative_positions`, `mask_product`, and `other` for what is
            left.
        weight_bits: Bits of its weights, None where they are float or there are none.
        activation_bits: Bits of its activations, None where they are float.
        parameters: Number of weights and biases.
        packed: Number of those that are stored as codes.
        code_bytes: What the codes take in the checkpoint.
        scale_bytes: What scales and zero points take, those of activations included.
        float_bytes: What float16 parameters take, biases included.
        macs: Multiply-accumulates for one image and one box prompt.
        low: Lowest end of the activation ranges, None where there are none.
        high: Highest end.
        probability_bits: Bits of the attention's probabilities, None where these are float or there are none.
        probability_macs: Those of the multiply-accumulates that have a probability for an operand.
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
        """All that the part takes in the checkpoint."""
        return self.code_bytes + self.scale_bytes + self.float_bytes


@dataclass(frozen=True)
class Inventory:
    """What `saqsam inspect` shows.

    Attributes:
        recipe: The recipe.
        name: The recipe's name; where it is mixed, with its mean bits (`mixed_name`).
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

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image and one box prompt."""
        return sum(part.macs for part in self.parts)

    def share_of_bytes(self) -> dict[str, float]:
        """Share of the checkpoint's bytes by what they hold: codes (`w4`, ...), `scales` or `float16`."""
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
        """Share of the multiply-accumulates at each pair of widths, such as `w4a4` or `float`."""
        return _shares((width, macs) for part in self.parts for width, macs, _ in _products(part))

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON types."""
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
    """Widths of a part's products: `w4a4`, `a4a4` for attention, `w8` with float activations, or `float`."""
    if part.weight_bits is None and part.activation_bits is None:
        return "float"
    if part.weight_bits is None:
        return f"a{part.activation_bits}a{part.activation_bits}"
    return f"w{part.weight_bits}" + ("" if part.activation_bits is None else f"a{part.activation_bits}")


def _products(part: PartInventory) -> list[tuple[str, int, float | None]]:
    """Widths, multiply-accumulates and mean activation bits of a part's products."""
    bits, own = part.activation_bits, part.probability_bits
    products = 2 * part.probability_macs  # those of queries and keys are as many
    if bits is not None and own is None and 0 < products < part.macs:
        return [(mac_width(part), part.macs - products, bits), ("float", products, None)]
    if bits is None or own is None or own == bits:
        return [(mac_width(part), part.macs, bits)]
    rest = part.macs - part.probability_macs
    return [(mac_width(part), rest, bits), (f"a{own}a{bits}", part.probability_macs, (own + bits) / 2)]


def _shares(counted: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Shares of the whole by key, largest first."""
    totals: Counter[str] = Counter()
    for key, count in counted:
        totals[key] += count
    return {key: count / totals.total() for key, count in totals.most_common() if count}


def take_inventory(model: SamModel) -> Inventory:
    """Count the parts of a quantized model.

    Raises:
        ValueError: If the model is float.
    """
    recipe = recipe_of(model)
    structure = structure_of(model.config)
    part_of = _owner(structure)
    macs = count_macs(model.config)
    parameters = _count_parameters(model.config, part_of)
    ranges = _activation_ranges(model, part_of)
    packed, sizes = _count_stored(model, part_of)
    parts = []
    for part in (*PARTS, RELATIVE_POSITIONS, MASK_PRODUCT, OTHER):
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
    """The recipe's name; where that ends in `-mixed`, with mean bits: `mse-w4a4-mixed-w4.31a4.05`.

    The first is the mean over all weights that are stored as codes, the second that over all
    multiply-accumulates with quantized activations.
    """
    if not recipe.name.endswith("-mixed"):
        return recipe.name
    weights = _mean((part.weight_bits, part.packed) for part in parts)
    activations = _mean((bits, macs) for part in parts for _, macs, bits in _products(part))
    return f"{recipe.name}-w{weights:.2f}a{activations:.2f}"


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float:
    known = [(bits, weight) for bits, weight in weighted if bits is not None]
    return sum(bits * weight for bits, weight in known) / sum(weight for _, weight in known)


def _count_parameters(config: SamConfig, part_of: Callable[[str], str]) -> Counter[str]:
    """Parameters of the float model by part; the tied position features count once."""
    with torch.device("meta"):
        skeleton = family_of(config).build(config)
    counts: Counter[str] = Counter()
    for name, parameter in skeleton.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


def _count_stored(
    model: SamModel, part_of: Callable[[str], str]
) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Weights stored as codes by part, and bytes by part and kind: `codes`, `scales` or `floats`."""
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
    """A function from a tensor's name to its part."""
    layers = {site.name: site.part for site in structure.weighted_sites}
    attentions = {site.name: site.part for site in structure.attentions}
    parent, _, embedding = structure.position_embedding.rpartition(".")
    positions = (structure.position_embedding, f"{parent}.packed_{embedding}")

    def part_of(name: str) -> str:
        if name.startswith(positions):
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
    """Lowest and highest end of the ranges of each part's activation quantizers."""
    ranges: dict[str, tuple[float, float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (AffineQuantizer, LogQuantizer)):
            part, (low, high) = part_of(f"{name}.scale"), module.range
            known_low, known_high = ranges.get(part, (low, high))
            ranges[part] = min(low, known_low), max(high, known_high)
    return ranges
