"""The quantization plan: every tensor that a recipe quantizes in the models of one configuration, decided once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from saqsam.models.family import ModelFamily
from saqsam.models.parts import CONVOLUTIONS, IMAGE_TO_TOKEN, POST_GELU_PARTS
from saqsam.models.registry import family_of
from saqsam.models.structure import LOGIT_OPERANDS, PROBABILITIES, SLOTS, ModelStructure, Site
from saqsam.recipes.recipe import Recipe

LINEAR_CHANNELS = -1
"""Axis of the channels in the input of a linear layer, [..., K]."""
IMAGE_CHANNELS = -3
"""Axis of the channels in the input of a convolution, [B, K, H, W]."""
HEAD_CHANNELS = -1
"""Axis of the channels in the queries and keys of an attention, [B, N, T, K]."""


SlotKind = Literal["affine", "log", "dynamic", "table"]
"""Kinds of activation quantizers, see `quantizer_kinds`."""


@dataclass(frozen=True)
class Slot:
    """A place for an activation quantizer.

    Attributes:
        name: Module name.
        part: Part that it belongs to.
        bits: Bits of the activation.
        kind: Kind of its quantizer, a key of `QUANTIZER_KINDS`.
        channel_axis: Axis of the channels, for dynamic quantizers; else None.
    """

    name: str
    part: str
    bits: int
    kind: SlotKind = "affine"
    channel_axis: int | None = None

    @property
    def owner(self) -> str:
        """Name of the layer or attention that it belongs to."""
        return self.name.rpartition(".")[0]


class PlannedWeight(NamedTuple):
    """A layer whose weight is quantized, and the bits of the weight."""

    site: Site
    bits: int


@dataclass(frozen=True)
class QuantizationPlan:
    """Every weight and activation that a recipe quantizes in a model.

    Attributes:
        family: Family of the model.
        structure: Module names of the model.
        recipe: The recipe.
        weights: Layers with quantized weights, in the order of computation.
        slots: Activation quantizers: inputs of layers, then operands of attention products.
        position_bits: Bits of the absolute position embedding; None if it stays float.
    """

    family: ModelFamily
    structure: ModelStructure
    recipe: Recipe
    weights: tuple[PlannedWeight, ...]
    slots: tuple[Slot, ...]
    position_bits: int | None


def plan_quantization(config: Any, recipe: Recipe) -> QuantizationPlan:
    """Plan the quantization of the models of a configuration.

    Args:
        config: Configuration of the model.
        recipe: The recipe.

    Raises:
        ValueError: No family has this kind of model.
    """
    family = family_of(config)
    structure = family.structure(config)
    return QuantizationPlan(
        family,
        structure,
        recipe,
        weights=tuple(_plan_weights(structure, recipe)),
        slots=(*_plan_inputs(structure, recipe), *_plan_operands(structure, recipe)),
        position_bits=None
        if structure.position_embedding is None
        else recipe.bits_of("position_embedding")[0],
    )


def _plan_weights(structure: ModelStructure, recipe: Recipe) -> Iterator[PlannedWeight]:
    for site in structure.weighted_sites:
        bits = recipe.bits_of(site.part)[0]
        if bits is not None:
            yield PlannedWeight(site, bits)


def _plan_inputs(structure: ModelStructure, recipe: Recipe) -> Iterator[Slot]:
    for site in structure.weighted_sites:
        bits = recipe.bits_of(site.part)[1]
        if bits is not None:
            name = f"{site.name}.input_quantizer"
            if recipe.activation_spec.dynamic:
                axis = IMAGE_CHANNELS if site.part in CONVOLUTIONS else LINEAR_CHANNELS
                yield Slot(name, site.part, bits, "dynamic", axis)
            elif recipe.gelu != "uniform" and site.part in POST_GELU_PARTS:
                yield Slot(name, site.part, bits, "table")
            else:
                yield Slot(name, site.part, bits)


def _plan_operands(structure: ModelStructure, recipe: Recipe) -> Iterator[Slot]:
    for site in structure.attentions:
        bits = recipe.operand_bits(site.part)
        probability_bits = recipe.probability_bits(site.part)
        if bits is None or probability_bits is None:
            continue
        for slot in SLOTS:
            if slot == PROBABILITIES:
                kind: SlotKind = "log" if recipe.probabilities.kind == "log" else "affine"
                yield Slot(f"{site.name}.{slot}", site.part, probability_bits, kind)
            elif recipe.dynamic_queries and site.part == IMAGE_TO_TOKEN and slot in LOGIT_OPERANDS:
                yield Slot(f"{site.name}.{slot}", site.part, bits, "dynamic", HEAD_CHANNELS)
            else:
                yield Slot(f"{site.name}.{slot}", site.part, bits)
