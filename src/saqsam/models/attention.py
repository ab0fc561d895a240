"""SAM's two kinds of attention with quantizers on the operands of their products.

Each has four slots: `query_quantizer`, `key_quantizer`, `value_quantizer` and `probability_quantizer`,
holding `nn.Identity` until an observer or a quantizer takes the place. With empty slots both compute exactly
what transformers' eager attentions compute (tested).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

PROBABILITIES = "probability_quantizer"
_LEAST_SUM = 1e-6
"""Of a row of quantized numerators, which a learned scale could round to nothing."""
SLOTS = ("query_quantizer", "key_quantizer", "value_quantizer", PROBABILITIES)


class SoftmaxProduct(nn.Module):
    """The values' mean by the quantized softmax of the logits, as in the papers."""

    def forward(self, logits: Tensor, value: Tensor, quantizer: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits [..., Q, K] and values [..., K, D] to output [..., Q, D] and probabilities [..., Q, K]."""
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32).to(value.dtype)
        probabilities = quantizer(probabilities)
        return probabilities @ value, probabilities


class RowScaledProduct(nn.Module):
    """The same with the softmax's numerators exp(x - row maximum) quantized, and divided by their sum afterwards.

    Each row then has the range to itself, where otherwise the probabilities of a row that looks at a thousand keys are
    all less than half a step of a range that other rows need. The product still has two static operands; what comes
    after it is one division for each row (as in SageAttention, arXiv 2410.02367).
    """

    def forward(self, logits: Tensor, value: Tensor, quantizer: nn.Module) -> tuple[Tensor, Tensor]:
        """See `SoftmaxProduct.forward`."""
        numerators = (logits - logits.amax(-1, keepdim=True)).exp()
        numerators = quantizer(numerators.to(value.dtype))
        total = numerators.sum(-1, keepdim=True).clamp_min(_LEAST_SUM)
        return (numerators @ value) / total, numerators / total


class QuantVisionAttention(SamVisionAttention):  # type: ignore[misc]
    """Encoder attention with decomposed relative positions.

    The relative positions are computed from the query before its quantizer, unless `quantized_rel_pos_query`
    is true: the published method keeps their product in float.
    """

    query_quantizer: nn.Module
    key_quantizer: nn.Module
    value_quantizer: nn.Module
    probability_quantizer: nn.Module
    product: SoftmaxProduct | RowScaledProduct
    quantized_rel_pos_query: bool

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> tuple[Tensor, Tensor]:
        """Attend within hidden_states [B, h, w, C].

        Returns:
            Output [B, h, w, C] and probabilities [B * N, h * w, h * w].
        """
        batch, height, width, channels = hidden_states.shape
        heads, tokens = self.num_attention_heads, height * width
        qkv = self.qkv(hidden_states).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, batch * heads, tokens, -1).unbind(0)
        rounded_query = self.query_quantizer(query)
        logits = (rounded_query * self.scale) @ self.key_quantizer(key).transpose(-2, -1)
        if self.use_rel_pos:
            size = (height, width)
            source = rounded_query if self.quantized_rel_pos_query else query
            rel_pos = self.get_decomposed_rel_pos(source, self.rel_pos_h, self.rel_pos_w, size, size)
            logits = logits + rel_pos.reshape_as(logits)
        output, probabilities = self.product(logits, self.value_quantizer(value), self.probability_quantizer)
        output = output.reshape(batch, heads, height, width, -1)
        output = output.permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels)
        return self.proj(output), probabilities


class QuantDecoderAttention(SamAttention):  # type: ignore[misc]
    """Attention of the mask decoder's two-way transformer."""

    query_quantizer: nn.Module
    key_quantizer: nn.Module
    value_quantizer: nn.Module
    probability_quantizer: nn.Module
    product: SoftmaxProduct | RowScaledProduct

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_similarity: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Attend from query [B, P, Q, C] to key and value [B, P, K, C].

        Args:
            query: Query tokens.
            key: Key tokens.
            value: Value tokens.
            attention_similarity: Added to the logits, broadcast to [B * P, N, Q, K] (PerSAM, arXiv
                2305.03048).

        Returns:
            Output [B, P, Q, C] and probabilities [B * P, N, Q, K].
        """
        prompts = query.shape[1]
        q = self.query_quantizer(self._separate_heads(self.q_proj(query), self.num_attention_heads))
        k = self.key_quantizer(self._separate_heads(self.k_proj(key), self.num_attention_heads))
        v = self.value_quantizer(self._separate_heads(self.v_proj(value), self.num_attention_heads))
        logits = (q @ k.transpose(2, 3)) * self.scaling
        if attention_similarity is not None:
            logits = logits + attention_similarity
        output, probabilities = self.product(logits, v, self.probability_quantizer)
        output = output.transpose(1, 2).contiguous()
        return self.out_proj(self._recombine_heads(output, prompts)), probabilities


QuantAttention = QuantVisionAttention | QuantDecoderAttention


def to_quant_attention(
    attention: nn.Module, *, quantized_rel_pos_query: bool = False, row_scaled: bool = False
) -> QuantAttention:
    """An attention with empty slots that shares the layers and parameters of a transformers attention."""
    new: QuantAttention
    if isinstance(attention, SamVisionAttention):
        new = QuantVisionAttention.__new__(QuantVisionAttention)
    else:
        assert isinstance(attention, SamAttention)
        new = QuantDecoderAttention.__new__(QuantDecoderAttention)
    new.__dict__ = {**attention.__dict__, "_modules": dict(attention._modules)}
    for slot in SLOTS:
        setattr(new, slot, nn.Identity())
    new.product = RowScaledProduct() if row_scaled else SoftmaxProduct()
    if isinstance(new, QuantVisionAttention):
        new.quantized_rel_pos_query = quantized_rel_pos_query
    return new
