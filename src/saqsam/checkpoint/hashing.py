"""The content hash of a checkpoint, which covers everything that affects a mask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import SamConfig, SamProcessor

from saqsam.models.configuration import config_fields
from saqsam.models.processing import processor_fields
from saqsam.utils.tensor_bytes import tensor_bytes


def content_hash(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a header and of the name, dtype, shape and bytes of every tensor.

    Args:
        tensors: Stored tensors by name, hashed in the order of their names.
        header: Plain JSON types from `hash_header`, hashed as JSON with sorted keys. In format version 1, the recipe.
    """
    digest = hashlib.sha256(f"{json.dumps(header, sort_keys=True)}\0".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def hash_header(
    config: SamConfig, recipe: Mapping[str, Any] | None, processor_sha256: str | None
) -> dict[str, Any]:
    """Return the fields that a checkpoint's content hash covers in addition to its tensors.

    Args:
        config: Configuration of the model; only fields that affect a mask are covered.
        recipe: The recipe as stored. It is not normalized, so that a recipe without later fields stays valid.
            None for a float model.
        processor_sha256: Hash of the processor, from `processor_hash`.
    """
    own = None if recipe is None else dict(recipe)
    return {"model": config_fields(config), "processor": processor_sha256, "recipe": own}


def processor_hash(processor: SamProcessor) -> str:
    """Return the SHA-256 of the settings of a processor that affect pixels and masks."""
    return hashlib.sha256(json.dumps(processor_fields(processor), sort_keys=True).encode()).hexdigest()
