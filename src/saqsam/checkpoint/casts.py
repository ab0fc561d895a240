"""Cast a quantized model to bfloat16 while its scales stay in float32, and refuse other dtypes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamPatchEmbeddings, SamPositionalEmbedding
from transformers.models.sam2.modeling_sam2 import Sam2PositionalEmbedding
from transformers.models.sam3.modeling_sam3 import Sam3ViTRotaryEmbedding
from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerPositionalEmbedding

from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.integer import Kernel
from saqsam.quant.layers import ChannelScale, PackedTensor
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.quant.tables import TableQuantizer

COMPUTE_DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes of the activations and float parameters of a quantized model."""
_KEPT_IN_FLOAT32 = (
    *(PackedTensor, AffineQuantizer, LogQuantizer, TableQuantizer, ChannelScale, Kernel),
    Sam3ViTRotaryEmbedding,
)


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
        _encode_positions_in_float32(model)
    kept = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, _KEPT_IN_FLOAT32)
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


_FLOAT32_ENCODINGS = {
    encoding: _in_float32(encoding)
    for encoding in (SamPositionalEmbedding, Sam2PositionalEmbedding, Sam3TrackerPositionalEmbedding)
}


def _encode_positions_in_float32(model: SamModel) -> None:
    """Replace the modules that read coordinates and pixels by versions for any dtype, in place."""
    for module in model.modules():
        if type(module) in _FLOAT32_ENCODINGS:
            module.__class__ = _FLOAT32_ENCODINGS[type(module)]
        if isinstance(module, SamPatchEmbeddings) and not module._forward_pre_hooks:
            module.register_forward_pre_hook(_cast_pixels)


def _cast_pixels(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast pixels, which processors return in float32, to the dtype of the patch embedding."""
    pixels, *others = arguments
    return pixels.to(next(module.parameters()).dtype), *others


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
