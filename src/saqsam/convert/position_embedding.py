"""Absolute position embeddings as packed codes: a tensor that the encoder adds, not a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saqsam.models.structure import ModelStructure
from saqsam.quant.layers import PackedTensor

CHANNEL_AXIS = 3
"""Axis of the channels in an embedding [1, h, w, C]."""


def position_embedding(model: nn.Module, structure: ModelStructure) -> Tensor | None:
    """Return the encoder's absolute position embedding [1, h, w, C], or None if the model has none."""
    if structure.position_embedding is None:
        return None
    parent, name = _locate(model, structure)
    values: Tensor | None = getattr(parent, name)
    return values


def packed_position_embedding(model: nn.Module, structure: ModelStructure) -> PackedTensor | None:
    """Return the codes of the position embedding, or None if it is not packed."""
    if structure.position_embedding is None:
        return None
    parent, name = _locate(model, structure)
    packed = parent._modules.get(f"packed_{name}")
    return packed if isinstance(packed, PackedTensor) else None


def place_position_embedding(model: nn.Module, structure: ModelStructure, packed: PackedTensor) -> None:
    """Replace the position embedding by its codes and a buffer, to be filled by `unpack_position_embedding`."""
    parent, name = _locate(model, structure)
    shape = getattr(parent, name).shape
    delattr(parent, name)
    setattr(parent, f"packed_{name}", packed)
    # The encoder adds a tensor of this name; the buffer is computed from the codes and not stored.
    parent.register_buffer(name, torch.zeros(shape, device=packed.codes.device), persistent=False)


def unpack_position_embedding(model: nn.Module, structure: ModelStructure) -> None:
    """Compute the position embedding from its codes, where it has been packed."""
    packed = packed_position_embedding(model, structure)
    if packed is not None:
        parent, name = _locate(model, structure)
        setattr(parent, name, packed())


def _locate(model: nn.Module, structure: ModelStructure) -> tuple[nn.Module, str]:
    """Return the module that holds the embedding, and the embedding's name there."""
    assert structure.position_embedding is not None
    parent, _, name = structure.position_embedding.rpartition(".")
    return model.get_submodule(parent), name
