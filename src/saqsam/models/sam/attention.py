"""SAM's two kinds of attention, with quantizers on the operands of their matrix products.

Each has four slots: `query_quantizer`, `key_quantizer`, `value_quantizer` and `probability_quantizer`. A slot holds
`nn.Identity` until an observer or a quantizer replaces it. With empty slots, both attentions are bit-equal to
transformers' eager attentions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

from saqsam.models.grid_attention import GridAttention, Positions
from saqsam.models.slots import with_slots
from saqsam.models.two_way import TwoWayAttention


class QuantVisionAttention(GridAttention, SamVisionAttention):  # type: ignore[misc]
    """Encoder attention with decomposed relative positions.

    Relative positions are computed from the float query, as in the published method, unless `quantized_rel_pos_query`
    is set.
    """

    use_rel_pos: bool
    rel_pos_h: Tensor
    rel_pos_w: Tensor
    get_rel_pos: Any
    quantized_rel_pos_query: bool

    def forward(
        self, hidden_states: Tensor, output_attentions: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within hidden_states [B, h, w, C].

        Returns:
            Output [B, h, w, C] and probabilities [B * N, h * w, h * w]. The probabilities are None if a checkpoint's
            attention is float, and if there are more than the `MAX_CHUNK_LOGITS` of the device: a gigabyte in each
            global block of SAM-H.
        """
        batch, height, width, channels = hidden_states.shape
        heads, tokens = self.num_attention_heads, height * width
        qkv = self.qkv(hidden_states).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, batch * heads, tokens, -1).unbind(0)
        rounded_query = self.query_quantizer(query)
        key, value = self.key_quantizer(key), self.value_quantizer(value)
        source = rounded_query if self.quantized_rel_pos_query else query
        positions = self._position_logits(source, height, width) if self.use_rel_pos else None
        output, probabilities = self.attend(query, rounded_query, key, value, positions, (height, width))
        output = output.reshape(batch, heads, height, width, -1)
        output = output.permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels)
        projected: Tensor = self.proj(output)
        return projected, probabilities

    def _position_logits(self, source: Tensor, height: int, width: int) -> Positions:
        """Return the logits of relative positions by row, [M, h * w, h], and by column, [M, h * w, w].

        Args:
            source: Queries that they are computed from, [M, h * w, D].
            height: Rows of the grid, h.
            width: Columns of the grid, w.
        """
        grid = source.reshape(len(source), height, width, -1)
        rows = self.get_rel_pos(height, height, self.rel_pos_h)
        columns = self.get_rel_pos(width, width, self.rel_pos_w)
        by_row = torch.einsum("bhwc,hkc->bhwk", grid, rows)
        by_column = torch.einsum("bhwc,wkc->bhwk", grid, columns)
        return by_row.flatten(1, 2), by_column.flatten(1, 2)


class QuantDecoderAttention(TwoWayAttention, SamAttention):  # type: ignore[misc]
    """Attention of the mask decoder's two-way transformer."""

    output_name = "out_proj"


QuantAttention = QuantVisionAttention | QuantDecoderAttention


def to_quant_attention(
    attention: nn.Module, *, quantized_rel_pos_query: bool = False, row_scaled: bool = False
) -> QuantAttention:
    """Return an attention with empty slots that shares the layers and parameters of a transformers attention.

    Args:
        attention: A `SamVisionAttention` or `SamAttention`.
        quantized_rel_pos_query: Compute relative positions from the quantized query; encoder attention only.
        row_scaled: Quantize the numerators of the softmax (`average.RowScaledAverage`) instead of the softmax.
    """
    if isinstance(attention, SamVisionAttention):
        vision = with_slots(QuantVisionAttention, attention, row_scaled=row_scaled)
        vision.quantized_rel_pos_query = quantized_rel_pos_query
        return vision
    assert isinstance(attention, SamAttention)
    return with_slots(QuantDecoderAttention, attention, row_scaled=row_scaled)
