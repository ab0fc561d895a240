"""MobileSAM's two kinds of attention, with quantizers on the operands of their matrix products.

They have the slots of SAM v1's; the decoder's attention is SAM v1's own.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.models.grid_attention import GridAttention
from saqsam.models.mobile_sam.tiny_vit import MobileSamVisionAttention
from saqsam.models.sam.attention import QuantDecoderAttention
from saqsam.models.sam.attention import to_quant_attention as to_quant_decoder_attention
from saqsam.models.slots import with_slots


class QuantWindowAttention(GridAttention, MobileSamVisionAttention):
    """Encoder attention within windows, whose logits have a learned bias for each relative offset.

    Windows hold at most a few hundred positions, so that all their logits are computed at once. Biases stay in
    floating point: they are added to the float logits.
    """

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Attend within windows.

        Args:
            hidden_states: Normalized windows [B, w, w, C].

        Returns:
            Output [B, w, w, C] and probabilities [B, N, w * w, w * w]. The probabilities are None if a checkpoint's
            attention is float.
        """
        query, key, value = self.split_heads(self.qkv(hidden_states))
        bias = self.position_bias()
        if self._is_fused():
            attended = F.scaled_dot_product_attention(
                query, key, value, bias.to(query.dtype)[None], scale=self.scale
            )
            return self.proj(self.merge_heads(attended)), None
        query, key, value = (
            quantizer(operand)
            for quantizer, operand in (
                (self.query_quantizer, query),
                (self.key_quantizer, key),
                (self.value_quantizer, value),
            )
        )
        logits = (query * self.scale) @ key.transpose(-2, -1) + bias
        attended, probabilities = self.average(logits, value, self.probability_quantizer)
        return self.proj(self.merge_heads(attended)), probabilities


def to_quant_attention(
    attention: nn.Module, *, row_scaled: bool
) -> QuantWindowAttention | QuantDecoderAttention:
    """Return an attention with empty slots that shares the layers and parameters of a float attention.

    Args:
        attention: A `MobileSamVisionAttention`, or a `SamAttention` of the decoder.
        row_scaled: Quantize the numerators of the softmax (`RowScaledAverage`) instead of the softmax.
    """
    if not isinstance(attention, MobileSamVisionAttention):
        new = to_quant_decoder_attention(attention, row_scaled=row_scaled)
        assert isinstance(new, QuantDecoderAttention)
        return new
    return with_slots(QuantWindowAttention, attention, row_scaled=row_scaled)
