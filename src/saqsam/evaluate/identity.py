"""What a run of an evaluation is a run of: digests that tell one model or data set from another."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn
from transformers import SamModel

from saqsam.backend import Backend
from saqsam.data.datasets import Dataset


def model_identity(model: SamModel | Backend) -> str:
    """12 hexadecimal digits of all weights and quantizers of a model, or of the checkpoint and files of an export.

    A backend that says nothing of itself gives the name of its class.
    """
    if isinstance(model, SamModel):
        return module_digest(model)
    manifest = getattr(model, "manifest", None)
    if manifest is None:
        return type(model).__name__
    return _hex(type(model).__name__, manifest.checkpoint, *sorted(manifest.files.values()))


def encoder_identity(model: SamModel | Backend) -> str | None:
    """As `model_identity`, of the image encoder alone; None for a backend, whose parts cannot be told apart."""
    return module_digest(model.vision_encoder) if isinstance(model, SamModel) else None


def module_digest(module: nn.Module) -> str:
    """12 hexadecimal digits of the structure and of all parameters and buffers of a module."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()[:12]


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Name, number of images and, where the data set has one, its `digest`."""
    return {
        "name": dataset.name,
        "images": len(dataset),
        "digest": getattr(dataset, "digest", None),
    }


def _hex(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
