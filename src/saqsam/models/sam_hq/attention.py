"""SAM-HQ's two kinds of attention: SAM v1's, under transformers' classes of SAM-HQ."""

from __future__ import annotations

from torch import nn
from transformers.models.sam_hq.modeling_sam_hq import SamHQAttention, SamHQVisionAttention

from saqsam.models.sam.attention import (
    QuantAttention,
    QuantDecoderAttention,
    QuantVisionAttention,
)
from saqsam.models.slots import with_slots


class QuantHQVisionAttention(QuantVisionAttention, SamHQVisionAttention):  # type: ignore[misc]
    """Encoder attention with decomposed relative positions."""


class QuantHQDecoderAttention(QuantDecoderAttention, SamHQAttention):  # type: ignore[misc]
    """Attention of the mask decoder's two-way transformer."""


def to_quant_attention(
    attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
) -> QuantAttention:
    """Return an attention with empty slots that shares the layers and parameters of a transformers attention.

    Args:
        attention: A `SamHQVisionAttention` or `SamHQAttention`.
        quantized_rel_pos_query: Compute relative positions from the quantized query; encoder attention only.
        row_scaled: Quantize the numerators of the softmax (`RowScaledAverage`) instead of the softmax.
    """
    if isinstance(attention, SamHQVisionAttention):
        vision = with_slots(QuantHQVisionAttention, attention, row_scaled=row_scaled)
        vision.quantized_rel_pos_query = quantized_rel_pos_query
        return vision
    assert isinstance(attention, SamHQAttention)
    return with_slots(QuantHQDecoderAttention, attention, row_scaled=row_scaled)
