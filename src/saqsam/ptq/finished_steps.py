"""Finished steps of a quantization as tensors and plain values, and back into a model after checking them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.checkpoint.tensors import MAX_SCALE, MAX_TAU, MIN_SCALE
from saqsam.models.family import ModelStructure
from saqsam.models.parts import DECODER_PARTS
from saqsam.ptq.clipping import AttentionClipping, Clip
from saqsam.ptq.journal import damaged_step
from saqsam.ptq.learning import UnitLog
from saqsam.utils.errors import shorten


def place_tensors(model: SamModel, tensors: Mapping[str, Tensor], names: Iterable[str], path: Path) -> None:
    """Copy the tensors of a step into the parameters and buffers of the same names.

    Args:
        model: Has modules of the right shapes in their places.
        tensors: Tensors by name.
        names: The names that the step must have.
        path: File of the step, for messages.

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
    """Check the signs of channels of the decoder's attentions, int8 [C] by name of the attention.

    Raises:
        CheckpointError: There is no such attention, or a tensor is not one of signs.
    """
    # The encoder's attentions have one projection for all three inputs, and no signs.
    known = {site.name for site in structure.attentions if site.part in DECODER_PARTS}
    for name, sign in signs.items():
        if name not in known:
            raise damaged_step(path, f"it has signs of the unknown attention {shorten(name)}")
        channels = model.get_submodule(f"{name}.q_proj").weight.shape[0]
        check_tensor(f"signs of {name}", sign, torch.zeros(channels, dtype=torch.int8), path)
        if not (sign.abs() == 1).all():
            raise damaged_step(path, f"signs of {name}: expected 1 and -1, found other values")


def check_tensor(name: str, tensor: Tensor, target: Tensor, path: Path) -> None:
    """Raise CheckpointError if a tensor has another dtype or shape than the one it is for, or is not finite."""
    if tensor.dtype != target.dtype:
        raise damaged_step(path, f"{name}: expected {target.dtype}, found {tensor.dtype}")
    if tensor.shape != target.shape:
        found = shorten(tuple(tensor.shape))
        raise damaged_step(path, f"{name}: expected shape {tuple(target.shape)}, found {found}")
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
    if tensor.is_floating_point() and attribute != "scale":
        # What stays float is stored as float16 in the checkpoint.
        _check_range(name, tensor, -MAX_SCALE, MAX_SCALE, path)


def _check_range(name: str, tensor: Tensor, low: float, high: float, path: Path) -> None:
    if tensor.numel() and (tensor.min() < low or tensor.max() > high):
        found = f"{float(tensor.min()):g} to {float(tensor.max()):g}"
        raise damaged_step(path, f"{name}: expected values from {low:g} to {high:g}, found {found}")


def read_unit_log(values: Mapping[str, Any]) -> UnitLog:
    """Return the log of a unit from its plain values.

    Raises:
        ValueError: They are not those of a `UnitLog`.
    """
    read = _Fields(values, UnitLog)
    log = UnitLog(
        read.get("unit", _is_text),
        read.get("steps", lambda value: _is_list(value, _is_count)),
        read.get("losses", lambda value: _is_list(value, _is_number)),
        read.get("moved", _is_share),
    )
    if len(log.steps) != len(log.losses):
        raise ValueError(f"expected a loss for each of {len(log.steps)} steps, got {len(log.losses)}")
    return log


def read_clipping(values: Any) -> AttentionClipping:
    """Return what was chosen for an attention from its plain values.

    Raises:
        ValueError: They are not those of an `AttentionClipping`.
    """
    read = _Fields(values, AttentionClipping)
    clips = read.get("clips", lambda value: isinstance(value, list))
    return AttentionClipping(
        read.get("name", _is_text),
        tuple(_read_clip(clip) for clip in clips),
        read.get("before", _is_number),
        read.get("after", _is_number),
    )


def _read_clip(values: Any) -> Clip:
    read = _Fields(values, Clip)
    return Clip(
        read.get("slot", _is_text),
        read.get("quantile", lambda value: value is None or _is_share(value)),
        read.get("low", _is_number),
        read.get("high", _is_number),
    )


class _Fields:
    """The fields of a dataclass, read one by one from untrusted plain values."""

    def __init__(self, values: Any, of: type) -> None:
        self._values, self._what = values, of.__name__
        names = {field.name for field in dataclasses.fields(of)}
        if not isinstance(values, Mapping) or values.keys() != names:
            raise ValueError(f"{self._what}: expected {', '.join(sorted(names))}, got {shorten(values)}")

    def get(self, name: str, is_valid: Callable[[Any], bool]) -> Any:
        value = self._values[name]
        if not is_valid(value):
            raise ValueError(f"{self._what}: {name} cannot be {shorten(value)}")
        return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(is_valid(one) for one in value)
