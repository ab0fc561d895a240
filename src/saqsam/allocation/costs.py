"""Costs of bits: multiply-accumulates and bytes of every operand whose bits can be chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from saqsam.analysis.macs import count_macs
from saqsam.checkpoint import stored_layout
from saqsam.convert.pack import build_packed_skeleton
from saqsam.convert.plan import plan_quantization
from saqsam.models.parts import PAPER_PARTS
from saqsam.models.registry import family_of
from saqsam.quant.affine import MAX_BITS
from saqsam.quant.packing import packed_size
from saqsam.recipes.recipe import Recipe

Kind = Literal["weights", "activations"]
_WIDTHS = {"F32": 0, "I32": 0, "F16": 1, "U8": 2}
"""Order of dtypes in a safetensors file."""


class Operand(NamedTuple):
    """All weights, or all activations, of one part: they get the same bits.

    Attributes:
        part: Name of the part, one of `models.parts.PAPER_PARTS`.
        kind: `weights` or `activations`.
    """

    part: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.part}.{self.kind}"


Bits = Mapping[Operand, int]
"""Bits of each operand: an allocation."""


@dataclass(frozen=True)
class BitCosts:
    """Costs of the bits of each operand, in the models of one configuration. Every cost is linear in the bits.

    Attributes:
        operands: Operands with quantizable values, in the order of computation: weights before activations.
        macs: Operands of multiply-accumulates that an operand provides, halved: mean bits are the mean over operands
            weighted by these.
        activation_macs: Multiply-accumulates with quantized activations of a part, by its activations.
        weights: Number of values of each layer's weight, by operand.
        fixed_bytes: Bytes of the checkpoint's file other than codes of these weights, at most: the digits of offsets
            depend on the bits.
    """

    operands: tuple[Operand, ...]
    macs: Mapping[Operand, float]
    activation_macs: Mapping[Operand, int]
    weights: Mapping[Operand, tuple[int, ...]]
    fixed_bytes: int

    def code_bytes(self, operand: Operand, bits: int) -> int:
        """Return the bytes of the codes of an operand; 0 for activations."""
        return sum(packed_size(count, bits) for count in self.weights.get(operand, ()))

    def bytes(self, bits: Bits) -> int:
        """Return the size of `model.safetensors` in bytes."""
        return self.fixed_bytes + sum(self.code_bytes(operand, bits[operand]) for operand in self.operands)

    def mean_bits(self, bits: Bits) -> float:
        """Return the mean bits of the operands of all quantized multiply-accumulates."""
        return _mean(bits, self.macs)

    def mean_weight_bits(self, bits: Bits) -> float:
        """Return the mean bits of all weights that are stored as codes."""
        return _mean(bits, {operand: sum(counts) for operand, counts in self.weights.items()})

    def mean_activation_bits(self, bits: Bits) -> float:
        """Return the mean bits of activations over all multiply-accumulates with quantized activations."""
        return _mean(bits, self.activation_macs)


def _mean(bits: Bits, amounts: Mapping[Operand, float]) -> float:
    return sum(bits[operand] * amount for operand, amount in amounts.items()) / sum(amounts.values())


def bit_costs(config: Any, recipe: Recipe) -> BitCosts:
    """Return the costs of the bits of each operand.

    Args:
        config: Configuration of the model.
        recipe: Recipe without overrides; its fields other than bits decide what is quantized.
    """
    # With the most bits, for which the header is longest: the size of the file is never underestimated.
    widest = replace(recipe.weights, bits=MAX_BITS)
    plan = plan_quantization(config, replace(recipe, weights=widest))
    with torch.device("meta"):
        model = family_of(config).build(config)
        build_packed_skeleton(model, plan)
    counts: dict[str, list[int]] = {}
    for site, _ in plan.weights:
        if site.part in PAPER_PARTS:
            counts.setdefault(site.part, []).append(model.get_submodule(site.name).weight.shape.numel())
    weights = {Operand(part, "weights"): tuple(values) for part, values in counts.items()}
    macs, activation_macs = _count_operands(config, recipe)
    has_slots = {slot.part for slot in plan.slots}
    operands = tuple(
        operand
        for part in PAPER_PARTS
        for operand in (Operand(part, "weights"), Operand(part, "activations"))
        if (operand in weights if operand.kind == "weights" else part in has_slots)
    )
    codes = sum(packed_size(count, MAX_BITS) for values in counts.values() for count in values)
    return BitCosts(operands, macs, activation_macs, weights, _file_size(model) - codes)


def _count_operands(config: Any, recipe: Recipe) -> tuple[dict[Operand, float], dict[Operand, int]]:
    """Return half the operands of MACs, and the MACs with quantized activations, by operand."""
    counted = count_macs(config)
    halves: dict[Operand, float] = {}
    activation_macs: dict[Operand, int] = {}
    for part in PAPER_PARTS:
        products = (
            2 * counted.probabilities[part]
        )  # queries times keys take as many as probabilities times values
        layers = counted.parts[part] - products
        if recipe.operand_bits(part) is None:
            products = 0
        if layers + products:
            activations = Operand(part, "activations")
            activation_macs[activations] = layers + products
            halves[activations] = layers / 2 + products
        if layers:
            halves[Operand(part, "weights")] = layers / 2
    return halves, activation_macs


def _file_size(model: Any) -> int:
    """Return the size in bytes of the safetensors file of a packed model, which may be on the meta device."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # safetensors aligns tensors by storing those of wide dtypes first: F32 and I32, F16, U8.
    by_width = sorted(stored_layout(model).items(), key=lambda entry: (_WIDTHS[entry[1][0]], entry[0]))
    for name, (dtype, shape, size) in by_width:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + (length + 7) // 8 * 8 + offset
