"""Attentions with empty quantizer slots, made from those of a float model."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from saqsam.models.average import RowScaledAverage, SoftmaxAverage
from saqsam.models.grid_attention import GridAttention
from saqsam.models.structure import SLOTS
from saqsam.models.two_way import TwoWayAttention

_Attention = TypeVar("_Attention", bound=GridAttention | TwoWayAttention)


def with_slots(kind: type[_Attention], attention: nn.Module, *, row_scaled: bool) -> _Attention:
    """Return an attention with empty slots that shares the layers and parameters of a float attention.

    Args:
        kind: Class of the result, a subclass of the float attention's.
        attention: Float attention.
        row_scaled: Quantize the numerators of the softmax (`RowScaledAverage`) instead of the softmax.
    """
    new = kind.__new__(kind)
    new.__dict__ = {**attention.__dict__, "_modules": dict(attention._modules)}
    for slot in SLOTS:
        setattr(new, slot, nn.Identity())
    new.average = RowScaledAverage() if row_scaled else SoftmaxAverage()
    return new
