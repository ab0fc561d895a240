"""The two kinds of attention of SAM 3's tracker, with quantizers on the operands of their matrix products.

They have the slots of SAM v1's. With empty slots, both equal transformers' eager attentions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3ViTRoPEAttention, apply_rotary_pos_emb_2d
from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerAttention

from saqsam.models.grid_attention import GridAttention
from saqsam.models.slots import with_slots
from saqsam.models.two_way import TwoWayAttention


class QuantRotaryAttention(GridAttention, Sam3ViTRoPEAttention):  # type: ignore[misc]
    """Encoder attention with rotary positions; queries and keys are quantized after they are rotated."""

    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any
    scaling: float

    @property
    def query_projection(self) -> Any:
        """Layer that computes the queries."""
        return self.q_proj

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within hidden states [B, h, w, C].

        Args:
            hidden_states: Image tokens, or those of B windows.
            position_embeddings: Cosine and sine of the rotations, [1, h * w, D] each.

        Returns:
            Output [B, h, w, C] and probabilities [B * N, h * w, h * w]. The probabilities are None if a checkpoint's
            attention is float, and if there are more than the `MAX_CHUNK_LOGITS` of the device.
        """
        batch, height, width, _channels = hidden_states.shape
        heads = self.num_attention_heads
        query, key, value = (
            layer(hidden_states).reshape(batch, height * width, heads, -1).transpose(1, 2).flatten(0, 1)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )  # [M, T, D] of M = B * N heads and T = h * w tokens
        query, key = apply_rotary_pos_emb_2d(query, key, *position_embeddings)
        rounded_query = self.query_quantizer(query)
        key, value = self.key_quantizer(key), self.value_quantizer(value)
        output, probabilities = self.attend(query, rounded_query, key, value, None, (height, width))
        output = output.unflatten(0, (batch, heads)).transpose(1, 2)  # type: ignore[no-untyped-call]
        attended: Tensor = self.o_proj(output.reshape(batch, height, width, -1))
        return attended, probabilities


class QuantTrackerAttention(TwoWayAttention, Sam3TrackerAttention):  # type: ignore[misc]
    """Attention of the mask decoder's two-way transformer."""

    output_name = "o_proj"


def to_quant_attention(
    attention: nn.Module, *, row_scaled: bool
) -> QuantRotaryAttention | QuantTrackerAttention:
    """Return an attention with empty slots that shares the layers of a transformers attention.

    Args:
        attention: A `Sam3ViTRoPEAttention` or `Sam3TrackerAttention`.
        row_scaled: Quantize the numerators of the softmax (`RowScaledAverage`) instead of the softmax.
    """
    if isinstance(attention, Sam3ViTRoPEAttention):
        rotary = with_slots(QuantRotaryAttention, attention, row_scaled=row_scaled)
        rotary.scale = rotary.scaling
        return rotary
    assert isinstance(attention, Sam3TrackerAttention)
    return with_slots(QuantTrackerAttention, attention, row_scaled=row_scaled)
