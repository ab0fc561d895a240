"""SAM 2's two kinds of attention, with quantizers on the operands of their matrix products.

They have the slots of SAM v1's. With empty slots, both equal transformers' eager attentions. transformers' encoder
attention also computes the softmax of the queries before pooling, which nothing reads; ours does not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.sam2.modeling_sam2 import Sam2Attention, Sam2MultiScaleAttention, do_pool

from saqsam.models.grid_attention import GridAttention
from saqsam.models.slots import with_slots
from saqsam.models.two_way import TwoWayAttention


class QuantMultiScaleAttention(GridAttention, Sam2MultiScaleAttention):  # type: ignore[misc]
    """Encoder attention, whose queries are max-pooled where the resolution drops."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """Attend within hidden states [B, h, w, C].

        Returns:
            [B, h, w, C'], or [B, h / 2, w / 2, C'] with pooled queries.
        """
        batch, height, width, _channels = hidden_states.shape
        heads, tokens = self.num_attention_heads, height * width
        qkv = self.qkv(hidden_states).reshape(batch, tokens, 3, heads, -1)
        query, key, value = qkv.unbind(2)  # [B, T, N, D]
        rows, columns = height, width
        if self.query_stride:
            query = do_pool(query.reshape(batch, height, width, -1), self.query_stride)
            rows, columns = query.shape[1:3]
            query = query.reshape(batch, rows * columns, heads, -1)
        query, key, value = (operand.transpose(1, 2).flatten(0, 1) for operand in (query, key, value))
        rounded_query = self.query_quantizer(query)
        key, value = self.key_quantizer(key), self.value_quantizer(value)
        output, _probabilities = self.attend(query, rounded_query, key, value, None, (height, width))
        output = output.unflatten(0, (batch, heads)).transpose(1, 2)  # type: ignore[no-untyped-call]
        attended: Tensor = self.proj(output.reshape(batch, rows, columns, -1))
        return attended


class QuantTwoWayAttention(TwoWayAttention, Sam2Attention):  # type: ignore[misc]
    """Attention of the mask decoder's two-way transformer."""

    output_name = "o_proj"


def to_quant_attention(
    attention: nn.Module, *, row_scaled: bool
) -> QuantMultiScaleAttention | QuantTwoWayAttention:
    """Return an attention with empty slots that shares the layers of a transformers attention.

    Args:
        attention: A `Sam2MultiScaleAttention` or `Sam2Attention`.
        row_scaled: Quantize the numerators of the softmax (`RowScaledAverage`) instead of the softmax.
    """
    if isinstance(attention, Sam2MultiScaleAttention):
        return with_slots(QuantMultiScaleAttention, attention, row_scaled=row_scaled)
    assert isinstance(attention, Sam2Attention)
    return with_slots(QuantTwoWayAttention, attention, row_scaled=row_scaled)
