"""Every weight and activation that a recipe quantizes in a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from saqsam.models.parts import CONVOLUTIONS
from saqsam.models.sam.attention import PROBABILITIES, SLOTS
from saqsam.models.structure import ModelStructure, Site
from saqsam.recipes.recipe import Recipe

LINEAR_CHANNELS = -1
"""Axis of the channels in the input of a linear layer, [..., K]."""


IMAGE_CHANNELS = -3
"""Axis of the channels in the input of a convolution, [B, K, H, W]."""


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


def activation_slots(structure: ModelStructure, recipe: Recipe) -> Iterator[Slot]:
    """Every activation that the recipe quantizes."""
    for site in structure.weighted_sites:
        bits = recipe.bits_of(site.part)[1]
        if bits is not None:
            axis = None
            if recipe.activation_spec.dynamic:
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


def weight_sites(structure: ModelStructure, recipe: Recipe) -> Iterator[tuple[Site, int]]:
    """Every layer whose weight the recipe quantizes, with its bits."""
    for site in structure.weighted_sites:
        bits = recipe.bits_of(site.part)[0]
        if bits is not None:
            yield site, bits
