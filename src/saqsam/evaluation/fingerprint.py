"""Fingerprints of models and datasets: an unfinished evaluation resumes only if they are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn

from saqsam.data.types import Dataset
from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from saqsam.models.configuration import config_fields
from saqsam.models.processing import processor_fields
from saqsam.models.registry import family_of
from saqsam.utils.tensor_bytes import tensor_bytes


def model_identity(predictor: Predictor) -> str:
    """Return 12 hexadecimal digits for a model with its processor: weights, quantizers and every setting of both.

    An export is identified by its checkpoint and its files; a backend without a manifest by the name of its class.
    """
    backend = predictor.backend
    if isinstance(backend, TorchBackend):
        model = backend.model
        return _hex(module_digest(model), _json(config_fields(model.config)), _settings(predictor))
    manifest = getattr(backend, "manifest", None)
    if manifest is None:
        return type(backend).__name__
    files = sorted(manifest.files.values())
    return _hex(type(backend).__name__, manifest.checkpoint, *files, _settings(predictor))


def encoder_identity(predictor: Predictor) -> str | None:
    """Return 12 hexadecimal digits for a model's image encoder and all that prepares its input.

    Two models with the same digits compute the same embeddings. None for other backends, whose parts cannot be told
    apart.
    """
    backend = predictor.backend
    if not isinstance(backend, TorchBackend):
        return None
    config = backend.model.config
    family = family_of(config)
    fields = family.encoder_fields(config_fields(config))
    return _hex(module_digest(family.encoder(backend.model)), _json(dict(fields)), _settings(predictor))


def module_digest(module: nn.Module) -> str:
    """Return 12 hexadecimal digits for the structure, parameters and buffers of a module."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:12]


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Return name, number of images and, where the dataset has one, its `digest`."""
    return {
        "name": dataset.name,
        "images": len(dataset),
        "digest": getattr(dataset, "digest", None),
    }


def _settings(predictor: Predictor) -> str:
    return _json(processor_fields(predictor.processor))


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


def _hex(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
