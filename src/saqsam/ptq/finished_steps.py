"""Check the tensors of a finished step against a model, and place them in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.checkpoint.tensors import MAX_SCALE, MAX_TAU, MIN_SCALE
from saqsam.models.structure import ModelStructure
from saqsam.ptq.journal import damaged_step
from saqsam.utils.errors import shorten


def place_tensors(model: SamModel, tensors: Mapping[str, Tensor], names: Iterable[str], path: Path) -> None:
    """Copy the tensors of a step into the parameters and buffers of the same names.

    Args:
        model: Model with modules of the right shapes in place.
        tensors: Tensors by name.
        names: Names that the step must have.
        path: File of the step, for error messages.

    Raises:
        CheckpointError: A tensor is missing or unknown, has another dtype or shape than the model's, or holds a value
            that quantization cannot have written.
    """
    expected = set(names)
    _check_names(tensors, expected, path)
    for name in sorted(expected):
        module_name, _, attribute = name.rpartition(".")
        module = model.get_submodule(module_name)
        target = getattr(module, attribute)
        check_tensor(name, tensors[name], target, path)
        _check_values(name, tensors[name], getattr(module, "bits", None), path)
        with torch.no_grad():
            target.copy_(tensors[name])


def check_signs(signs: Mapping[str, Tensor], model: SamModel, structure: ModelStructure, path: Path) -> None:
    """Check signs of query and key channels.

    Args:
        signs: +1 or -1, int8 [C], by name of the attention.
        model: Prepared model.
        structure: Structure of the model.
        path: File of the step, for error messages.

    Raises:
        CheckpointError: There is no such attention in the decoder, or a tensor holds other values than signs.
    """
    # The encoder's attentions have one projection for all three operands, and no signs.
    known = {site.name: site for site in structure.decoder_attentions}
    for name, sign in signs.items():
        if name not in known:
            raise damaged_step(path, f"it has signs of the unknown attention {shorten(name)}")
        channels = model.get_submodule(known[name].query).weight.shape[0]
        check_tensor(f"signs of {name}", sign, torch.zeros(channels, dtype=torch.int8), path)
        if not (sign.abs() == 1).all():
            raise damaged_step(path, f"signs of {name}: expected 1 and -1, found other values")


def check_tensor(name: str, tensor: Tensor, target: Tensor, path: Path) -> None:
    """Raise CheckpointError if a tensor has another dtype or shape than its target, or is not finite."""
    if tensor.dtype != target.dtype:
        raise damaged_step(path, f"{name}: expected {target.dtype}, found {tensor.dtype}")
    if tensor.shape != target.shape:
        shape = shorten(tuple(tensor.shape))
        raise damaged_step(path, f"{name}: expected shape {tuple(target.shape)}, found {shape}")
    if not torch.isfinite(tensor).all():
        raise damaged_step(path, f"{name}: expected finite values, found NaN or infinity")


def _check_names(tensors: Mapping[str, Tensor], expected: set[str], path: Path) -> None:
    missing, unknown = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing:
        raise damaged_step(path, f"it lacks {missing[0]}")
    if unknown:
        raise damaged_step(path, f"it has the unknown tensor {shorten(unknown[0])}")


def _check_values(name: str, tensor: Tensor, bits: int | None, path: Path) -> None:
    attribute = name.rpartition(".")[2]
    if attribute == "scale":
        _check_range(name, tensor, MIN_SCALE, MAX_SCALE, path)
    if attribute == "zero_point" and bits is not None:
        _check_range(name, tensor, 0, 2**bits - 1, path)
    if attribute == "tau":
        tau = int(tensor)
        if tau < 1 or tau > MAX_TAU or tau & (tau - 1):
            raise damaged_step(path, f"{name}: expected a power of 2 up to {MAX_TAU}, found {tau}")
    if attribute == "levels" and not (tensor.diff() >= 0).all():
        raise damaged_step(path, f"{name}: expected levels in ascending order, found others")
    if tensor.is_floating_point() and attribute != "scale":
        # A checkpoint stores float parameters as float16.
        _check_range(name, tensor, -MAX_SCALE, MAX_SCALE, path)


def _check_range(name: str, tensor: Tensor, low: float, high: float, path: Path) -> None:
    if tensor.numel() and (tensor.min() < low or tensor.max() > high):
        span = f"{float(tensor.min()):g} to {float(tensor.max()):g}"
        raise damaged_step(path, f"{name}: expected values from {low:g} to {high:g}, found {span}")
