"""Attention within a grid of image tokens, with quantizer slots: the encoder's, of every family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.models.attention_chunks import (
    CHUNKABLE,
    Chunk,
    ChunkedAttention,
    max_chunk_logits,
    split_attention,
)
from saqsam.models.average import RowScaledAverage, SoftmaxAverage
from saqsam.models.structure import SLOTS
from saqsam.quant.layers import PackedLinear
from saqsam.quant.logarithmic import GranularityObserver

Positions = tuple[Tensor, Tensor]
"""Logits of relative positions by row, [M, Q, h], and by column, [M, Q, w], of M heads and Q queries."""


class GridAttention(nn.Module):
    """Mixin for an attention within a grid, with quantizer slots.

    The class that it is mixed into has the layers `qkv` and `proj`, or its own `query_projection`, and the factor of
    the logits, `scale`.

    Attributes:
        average: Average of the values.
    """

    qkv: Any
    proj: Any
    num_attention_heads: int
    scale: float
    query_quantizer: nn.Module
    key_quantizer: nn.Module
    value_quantizer: nn.Module
    probability_quantizer: nn.Module
    average: SoftmaxAverage | RowScaledAverage

    @property
    def query_projection(self) -> Any:
        """Layer that computes the queries."""
        return self.qkv

    def attend(
        self,
        query: Tensor,
        rounded_query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Positions | None,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None]:
        """Average the values.

        Args:
            query: Float queries [M, Q, D] of M heads.
            rounded_query: The queries after their quantizer.
            key: Keys [M, T, D] after their quantizer.
            value: Values [M, T, D] after theirs.
            positions: Logits of relative positions, if the attention has them.
            grid: Height and width of the grid; T is their product.

        Returns:
            Output [M, Q, D] and probabilities [M, Q, T]. The probabilities are None if a checkpoint's attention is
            float, and if there are more than the `MAX_CHUNK_LOGITS` of the device: a gigabyte in each global block of
            SAM-H.
        """
        is_fused, height, width = self._is_fused(), *grid
        if query.shape[1] != key.shape[1]:  # pooled queries, in small windows
            return self._attend(rounded_query, key, value, positions)
        chunks = split_attention(len(query), height, width, max_chunk_logits(query.device, is_fused=is_fused))
        if is_fused:
            return self._attend_fused(chunks, query, key, value, positions), None
        if len(chunks) > 1 and isinstance(self.probability_quantizer, CHUNKABLE):
            return self._attend_in_chunks(chunks, rounded_query, key, value, positions), None
        return self._attend(rounded_query, key, value, positions)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Positions | None
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
        positions: Positions | None,
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
        return isinstance(self.query_projection, PackedLinear) and all(
            isinstance(getattr(self, slot), nn.Identity) for slot in SLOTS
        )

    def _attend_fused(
        self,
        chunks: Sequence[Chunk],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Positions | None,
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


def _position_bias(by_row: Tensor, by_column: Tensor) -> Tensor:
    """Return the sum, [M, Q, h * w], of logits by row [M, Q, h] and by column [M, Q, w]."""
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(2)
