"""SAM's two kinds of attention, with quantizers on the operands of their matrix products.

Each has four slots: `query_quantizer`, `key_quantizer`, `value_quantizer` and `probability_quantizer`. A slot holds
`nn.Identity` until an observer or a quantizer replaces it. With empty slots, both attentions are bit-equal to
transformers' eager attentions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

from saqsam.models.sam.attention_chunks import Chunk, ChunkedAttention, max_chunk_logits, split_attention
from saqsam.models.structure import SLOTS
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedLinear
from saqsam.quant.learned import RandomDrop
from saqsam.quant.logarithmic import GranularityObserver, LogQuantizer
from saqsam.quant.range_observers import HistogramObserver

MIN_NUMERATOR_SUM = 1e-6
"""Lower bound of the sum of a row of quantized numerators, which a learned scale could round to zero."""
MIN_EXPONENT = -80.0
"""Lower bound of the exponents of numerators."""

_CHUNKABLE = (nn.Identity, AffineQuantizer, LogQuantizer, RandomDrop, HistogramObserver, GranularityObserver)
"""Quantizers and observers that need not see all probabilities at once: they treat each by itself, or sample rows."""


class SoftmaxAverage(nn.Module):
    """Average values by the quantized softmax of the logits, as in the papers."""

    def forward(self, logits: Tensor, value: Tensor, quantizer: nn.Module) -> tuple[Tensor, Tensor]:
        """Average values.

        Args:
            logits: [..., Q, K].
            value: [..., K, D].
            quantizer: Quantizer, observer or `nn.Identity` for the probabilities.

        Returns:
            Output [..., Q, D] and quantized probabilities [..., Q, K].
        """
        probabilities = quantizer(self.weights(logits).to(value.dtype))
        return self.average(probabilities, value), probabilities

    def weights(self, logits: Tensor) -> Tensor:
        """Return the softmax, float32."""
        return torch.softmax(logits, dim=-1, dtype=torch.float32)

    def average(self, weights: Tensor, value: Tensor) -> Tensor:
        """Average `value` [..., K, D] by probabilities [..., Q, K]."""
        return weights @ value

    def logits_gradient(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the logits from that of the probabilities."""
        return torch._softmax_backward_data(gradient, weights, -1, gradient.dtype)


class RowScaledAverage(nn.Module):
    """Average values by quantized softmax numerators exp(x - row maximum), then divide by the sum of the numerators.

    Every row then uses the full range of the quantizer. Without row scaling, the probabilities of a row that attends to
    a thousand keys are all below half a step of the range that other rows need. The matrix product still has two static
    operands, followed by one division per row (as in SageAttention, arXiv 2410.02367).
    """

    def forward(self, logits: Tensor, value: Tensor, quantizer: nn.Module) -> tuple[Tensor, Tensor]:
        """Average values; arguments and results are those of `SoftmaxAverage.forward`."""
        numerators = quantizer(self.weights(logits).to(value.dtype))
        total = self._total(numerators)
        return (numerators @ value) / total, numerators / total

    def weights(self, logits: Tensor) -> Tensor:
        """Return the numerators."""
        # Without bounds, exponentials would be subnormal, which are thirty times as slow. `hardtanh` is `clamp` with a
        # vectorized backward pass; a row's maximum, 0, lies inside.
        largest = logits.detach().amax(-1, keepdim=True)
        if torch.is_grad_enabled():
            return F.hardtanh(logits - largest, MIN_EXPONENT, 1.0).exp()
        return (logits - largest).clamp_(min=MIN_EXPONENT).exp_()

    def average(self, weights: Tensor, value: Tensor) -> Tensor:
        """Average `value` [..., K, D] by numerators [..., Q, K]."""
        return (weights @ value) / self._total(weights)

    def logits_gradient(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the logits from that of the numerators, which is overwritten."""
        return gradient.mul_(weights)

    def _total(self, numerators: Tensor) -> Tensor:
        return numerators.sum(-1, keepdim=True).clamp_min(MIN_NUMERATOR_SUM)


class QuantVisionAttention(SamVisionAttention):  # type: ignore[misc]
    """Encoder attention with decomposed relative positions.

    Relative positions are computed from the float query, as in the published method, unless `quantized_rel_pos_query`
    is set.
    """

    query_quantizer: nn.Module
    key_quantizer: nn.Module
    value_quantizer: nn.Module
    probability_quantizer: nn.Module
    average: SoftmaxAverage | RowScaledAverage
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
        most = max_chunk_logits(query.device, is_fused=self._is_fused())
        chunks = split_attention(len(query), height, width, most)
        positions = self._position_logits(source, height, width) if self.use_rel_pos else None
        probabilities: Tensor | None = None
        if self._is_fused():
            output = self._attend_fused(chunks, query, key, value, positions)
        elif len(chunks) > 1 and isinstance(self.probability_quantizer, _CHUNKABLE):
            output = self._attend_in_chunks(chunks, rounded_query, key, value, positions)
        else:
            output, probabilities = self._attend(rounded_query, key, value, positions)
        output = output.reshape(batch, heads, height, width, -1)
        output = output.permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels)
        return self.proj(output), probabilities

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, positions: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return output [M, T, D] and probabilities [M, T, T] of M heads and T tokens."""
        logits = (query * self.scale) @ key.transpose(-2, -1)
        if positions is not None:
            logits = logits + _position_bias(*positions)
        averaged: tuple[Tensor, Tensor] = self.average(logits, value, self.probability_quantizer)
        return averaged

    def _attend_in_chunks(
        self,
        chunks: Sequence[Chunk],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Return the output of `_attend`, computed chunk by chunk."""
        quantizer = self.probability_quantizer
        if not isinstance(quantizer, GranularityObserver):
            return ChunkedAttention(self.average, quantizer, self.scale, chunks)(query, key, value, positions)
        attend = ChunkedAttention(self.average, nn.Identity(), self.scale, chunks)
        if quantizer.wants_rows:
            heads, queries = quantizer.draw_rows(len(query), query.shape[1], key.shape[1])
            heads, queries = heads.to(query.device), queries.to(query.device)
            quantizer.add_rows(attend.rows(heads, queries, query, key, positions), value[heads])
        return attend(query, key, value, positions)

    def _is_fused(self) -> bool:
        """Return whether this is a checkpoint's attention without quantized operands."""
        return isinstance(self.qkv, PackedLinear) and all(
            isinstance(getattr(self, slot), nn.Identity) for slot in SLOTS
        )

    def _attend_fused(
        self,
        chunks: Sequence[Chunk],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Return the output of `_attend` for empty slots, computed by torch's fused attention."""
        outputs = []
        for heads, queries in chunks:
            bias = None
            if positions is not None:
                bias = _position_bias(*(logits[heads, queries] for logits in positions))[None].to(query.dtype)
            output = F.scaled_dot_product_attention(
                query[None, heads, queries], key[None, heads], value[None, heads], bias, scale=self.scale
            )
            outputs.append(output.flatten(0, 2))
        return torch.cat(outputs).reshape(query.shape)

    def _position_logits(self, source: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
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


def _position_bias(by_row: Tensor, by_column: Tensor) -> Tensor:
    """Return the sum, [M, Q, h * w], of logits by row [M, Q, h] and by column [M, Q, w]."""
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(2)


class QuantDecoderAttention(SamAttention):  # type: ignore[misc]
    """Attention of the mask decoder's two-way transformer."""

    query_quantizer: nn.Module
    key_quantizer: nn.Module
    value_quantizer: nn.Module
    probability_quantizer: nn.Module
    average: SoftmaxAverage | RowScaledAverage

    @property
    def input_projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Layers that compute queries, keys and values."""
        return self.q_proj, self.k_proj, self.v_proj

    @property
    def output_projection(self) -> nn.Module:
        """Layer that reads the attended values."""
        layer: nn.Module = self.out_proj
        return layer

    def split_heads(self, projected: Tensor) -> Tensor:
        """Split projected values [B, P, T, C] into heads [B * P, N, T, C / N]."""
        heads: Tensor = self._separate_heads(projected, self.num_attention_heads)
        return heads

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
        output, probabilities = self.average(logits, v, self.probability_quantizer)
        output = output.transpose(1, 2).contiguous()
        return self.out_proj(self._recombine_heads(output, prompts)), probabilities


QuantAttention = QuantVisionAttention | QuantDecoderAttention


def to_quant_attention(
    attention: nn.Module, *, quantized_rel_pos_query: bool = False, row_scaled: bool = False
) -> QuantAttention:
    """Return an attention with empty slots that shares the layers and parameters of a transformers attention.

    Args:
        attention: A `SamVisionAttention` or `SamAttention`.
        quantized_rel_pos_query: Compute relative positions from the quantized query; encoder attention only.
        row_scaled: Quantize the numerators of the softmax (`RowScaledAverage`) instead of the softmax.
    """
    new: QuantAttention
    if isinstance(attention, SamVisionAttention):
        new = QuantVisionAttention.__new__(QuantVisionAttention)
    else:
        assert isinstance(attention, SamAttention)
        new = QuantDecoderAttention.__new__(QuantDecoderAttention)
    new.__dict__ = {**attention.__dict__, "_modules": dict(attention._modules)}
    for slot in SLOTS:
        setattr(new, slot, nn.Identity())
    new.average = RowScaledAverage() if row_scaled else SoftmaxAverage()
    if isinstance(new, QuantVisionAttention):
        new.quantized_rel_pos_query = quantized_rel_pos_query
    return new
