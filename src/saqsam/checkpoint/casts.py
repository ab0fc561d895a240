"""Cast a quantized model to bfloat16 while its scales stay in float32, and refuse other dtypes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamModel

from saqsam.models.parts import PATCH_EMBEDDING
from saqsam.models.registry import family_of
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.integer import Kernel
from saqsam.quant.layers import ChannelScale, PackedTensor
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.quant.tables import TableQuantizer

COMPUTE_DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes of the activations and float parameters of a quantized model."""
_KEPT_IN_FLOAT32 = (PackedTensor, AffineQuantizer, LogQuantizer, TableQuantizer, ChannelScale, Kernel)


def check_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype that a quantized model can compute in.

    Raises:
        ValueError: It is neither float32 nor bfloat16. float16 has too small a range for SAM's activations.
    """
    if dtype not in COMPUTE_DTYPES:
        raise ValueError(f"dtype: a quantized SAM computes in float32 or bfloat16, got {_name(dtype)}")
    return dtype


def guard_casts(model: SamModel) -> None:
    """Let `model.to(torch.bfloat16)` cast a quantized model without rounding its scales, and refuse other dtypes.

    All float parameters and activations become bfloat16. Scales, zero points and codes are unchanged: rounding a scale
    would shift the whole grid of its codes. Quantizers compute in float32 and return bfloat16. Prompt coordinates and
    positions are encoded in float32, because bfloat16 cannot tell neighboring pixels apart.
    """
    model._apply = functools.partial(_apply, model)


def _apply(model: SamModel, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SamModel:
    """Stand in for `nn.Module._apply`, through which torch sends every cast and every move to a device."""
    dtype = fn(torch.zeros((), dtype=model.dtype, device=model.device)).dtype
    if dtype != model.dtype:
        check_compute_dtype(dtype)
        if dtype == torch.float32:
            raise ValueError(
                "dtype: this model was cast to bfloat16, which lost digits; load it again to use float32"
            )
        _accept_float32_inputs(model)
    in_float32: tuple[type[nn.Module], ...] = (*_KEPT_IN_FLOAT32, *family_of(model.config).float32_modules)
    kept = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, in_float32)
        for tensor in [*module.parameters(), *module.buffers()]
    }
    kept |= {id(tensor) for name, tensor in model.named_buffers() if name.endswith(".position_ids")}

    def cast_unless_kept(tensor: Tensor) -> Tensor:
        changed = fn(tensor)
        return tensor.to(changed.device) if id(tensor) in kept else changed

    applied: SamModel = type(model)._apply(model, cast_unless_kept, recurse)
    for module in model.modules():
        if isinstance(module, PackedTensor):
            module.dtype = dtype
    model.config.dtype = dtype
    return applied


def _in_float32(encoding: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a positional encoding that computes in float32 for any dtype of its matrix."""

    def forward(self: Any, input_coords: Tensor, input_shape: tuple[int, int] | None = None) -> Tensor:
        """Encode coordinates [..., 2] as [..., C] in the dtype of the matrix."""
        wide, matrix = copy.copy(self), self.positional_embedding
        for kind in ("_parameters", "_buffers"):  # a parameter in SAM v1, a buffer in SAM 2
            held = getattr(self, kind)
            if "positional_embedding" in held:
                setattr(wide, kind, {**held, "positional_embedding": matrix.float()})
        encoded: Tensor = encoding.forward(wide, input_coords.float(), input_shape)
        return encoded.to(matrix.dtype)

    return type(f"Float32{encoding.__name__}", (encoding,), {"forward": forward})


def _accept_float32_inputs(model: SamModel) -> None:
    """Encode coordinates in float32 and cast pixels, which processors return in float32, in place."""
    family = family_of(model.config)
    for module in model.modules():
        if type(module) is family.coordinate_encoding:
            module.__class__ = _in_float32(family.coordinate_encoding)
    layers = family.structure(model.config).float_layers
    patches = model.get_submodule(next(site.name for site in layers if site.part == PATCH_EMBEDDING))
    if _cast_pixels not in patches._forward_pre_hooks.values():
        patches.register_forward_pre_hook(_cast_pixels)


def _cast_pixels(patches: Any, arguments: tuple[Tensor, ...]) -> Tensor:
    """Cast pixels to the dtype of the layer that reads them, whose weight may be packed."""
    (pixels,) = arguments
    return pixels.to(patches.weight.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
