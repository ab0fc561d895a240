"""The SAM families that saqsam supports."""

from __future__ import annotations

from typing import Any

from saqsam.models.family import ModelFamily
from saqsam.models.mobile_sam.family import MobileSamFamily
from saqsam.models.sam.family import SamFamily
from saqsam.models.sam2.family import Sam2Family
from saqsam.models.sam_hq.family import SamHQFamily
from saqsam.models.structure import ModelStructure

FAMILIES: tuple[ModelFamily, ...] = (SamFamily(), SamHQFamily(), Sam2Family(), MobileSamFamily())
"""One entry for each family. A family whose models have the tensors of another one comes after it."""


def family_of(config: Any) -> ModelFamily:
    """Return the family of a model's configuration.

    Args:
        config: A transformers configuration.

    Raises:
        ValueError: No family has this `model_type`.
    """
    for family in FAMILIES:
        if config.model_type in family.format.model_types:
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.format.model_types)
    raise ValueError(f"model_type: expected one of {supported}, got {config.model_type!r}")


def structure_of(config: Any) -> ModelStructure:
    """Return the structure of the models of a configuration.

    Args:
        config: A transformers configuration.

    Raises:
        ValueError: No family has this `model_type`.
    """
    return family_of(config).structure(config)


def module_label(name: str) -> str:
    """Return the display name of a module of any family; unknown names are returned."""
    labels = (family.module_label(name) for family in FAMILIES)
    return next((label for label in labels if label != name), name)


def slot_label(slot: str) -> str:
    """Return the display name of an activation slot of any family."""
    module = slot.rpartition(".")[0]
    family = next((family for family in FAMILIES if family.module_label(module) != module), FAMILIES[0])
    return family.slot_label(slot)
