"""SAM's two kinds of attention, with quantizers on the operands of their matrix products.

Each has four slots: `query_quantizer`, `key_quantizer`, `value_quantizer` and `probability_quantizer`. A slot holds
`nn.Identity` until an observer or a quantizer replaces it. With empty slots, both attentions are bit-equal to
transformers' eager attentions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

from saqsam.models.structure import SLOTS
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedLinear
from saqsam.quant.learned import RandomDrop
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.quant.range_observers import HistogramObserver

MIN_NUMERATOR_SUM = 1e-6
"""Lower bound of the sum of a row of quantized numerators, which a learned scale could round to zero."""
MIN_EXPONENT = -80.0
"""Lower bound of the exponents of numerators."""
MAX_CHUNK_LOGITS = 2**25
"""Logits of an encoder attention that are computed at once; larger attentions are split by heads and, under autograd,
recomputed in the backward pass. A global attention of SAM-B at 1024 px has 2e8 logits; quantization holds about five
values per logit in memory, learning eight."""


_ELEMENTWISE = (nn.Identity, AffineQuantizer, LogQuantizer, RandomDrop, HistogramObserver)
"""Modules that may be applied to the probabilities in chunks. Other observers may not."""


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
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32).to(value.dtype)
        probabilities = quantizer(probabilities)
        return probabilities @ value, probabilities


class RowScaledAverage(nn.Module):
    """Average values by quantized softmax numerators exp(x - row maximum), then divide by the sum of the numerators.

    Every row then uses the full range of the quantizer. Without row scaling, the probabilities of a row that attends to
    a thousand keys are all below half a step of the range that other rows need. The matrix product still has two static
    operands, followed by one division per row (as in SageAttention, arXiv 2410.02367).
    """

    def forward(self, logits: Tensor, value: Tensor, quantizer: nn.Module) -> tuple[Tensor, Tensor]:
        """Average values; arguments and results are those of `SoftmaxAverage.forward`."""
        # Without bounds, exponentials would be subnormal, which are thirty times as slow. `hardtanh` is `clamp` with a
        # vectorized backward pass; a row's maximum, 0, lies inside.
        exponents = F.hardtanh(logits - logits.detach().amax(-1, keepdim=True), MIN_EXPONENT, 1.0)
        numerators = exponents.exp()
        numerators = quantizer(numerators.to(value.dtype))
        total = numerators.sum(-1, keepdim=True).clamp_min(MIN_NUMERATOR_SUM)
        return (numerators @ value) / total, numerators / total


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
            attention is float, and if there are more than `MAX_CHUNK_LOGITS`: a gigabyte in each global block of SAM-H.
        """
        batch, height, width, channels = hidden_states.shape
        heads, tokens = self.num_attention_heads, height * width
        qkv = self.qkv(hidden_states).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, batch * heads, tokens, -1).unbind(0)
        rounded_query = self.query_quantizer(query)
        key, value = self.key_quantizer(key), self.value_quantizer(value)
        source = rounded_query if self.quantized_rel_pos_query else query
        operands = (rounded_query, key, value, source)
        probabilities: Tensor | None
        if self._is_fused():
            output, probabilities = self._attend_fused((height, width), *operands), None
        elif batch * heads * tokens**2 > MAX_CHUNK_LOGITS and isinstance(
            self.probability_quantizer, _ELEMENTWISE
        ):
            output, probabilities = self._attend_in_chunks((height, width), *operands), None
        else:
            output, probabilities = self._attend((height, width), *operands)
        output = output.reshape(batch, heads, height, width, -1)
        output = output.permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels)
        return self.proj(output), probabilities

    def _attend(
        self, size: tuple[int, int], query: Tensor, key: Tensor, value: Tensor, source: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return output [M, h * w, D] and probabilities [M, h * w, h * w] of M heads.

        Relative positions are computed from `source`.
        """
        logits = (query * self.scale) @ key.transpose(-2, -1)
        if self.use_rel_pos:
            rel_pos = self.get_decomposed_rel_pos(source, self.rel_pos_h, self.rel_pos_w, size, size)
            logits = logits + rel_pos.reshape_as(logits)
        averaged: tuple[Tensor, Tensor] = self.average(logits, value, self.probability_quantizer)
        return averaged

    def _is_fused(self) -> bool:
        """Return whether this is a checkpoint's attention without quantized operands."""
        return isinstance(self.qkv, PackedLinear) and all(
            isinstance(getattr(self, slot), nn.Identity) for slot in SLOTS
        )

    def _attend_fused(self, size: tuple[int, int], *operands: Tensor) -> Tensor:
        """Return the output of `_attend` for empty slots, computed by torch's fused attention."""
        # On a CPU, relative positions of a few heads at a time fit into the cache; a GPU is fastest with all heads.
        heads = self._chunk_heads(operands[0]) if operands[0].device.type == "cpu" else len(operands[0])
        outputs = []
        for query, key, value, source in zip(*(torch.split(o, heads) for o in operands), strict=True):
            bias = None
            if self.use_rel_pos:
                bias = self.get_decomposed_rel_pos(source, self.rel_pos_h, self.rel_pos_w, size, size)
                bias = bias.reshape(1, *query.shape[:2], -1).to(query.dtype)
            output = F.scaled_dot_product_attention(
                query[None], key[None], value[None], bias, scale=self.scale
            )
            outputs.append(output[0])
        return torch.cat(outputs)

    @staticmethod
    def _chunk_heads(operand: Tensor) -> int:
        """Return the number of heads per chunk for an operand [M, T, D]."""
        return max(1, MAX_CHUNK_LOGITS // operand.shape[1] ** 2)

    def _attend_in_chunks(self, size: tuple[int, int], *operands: Tensor) -> Tensor:
        """Return the output of `_attend`, computed a few heads at a time."""
        heads = len(operands[0])
        step = self._chunk_heads(operands[0])
        chunks = [slice(start, start + step) for start in range(0, heads, step)]
        if torch.is_grad_enabled():
            outputs = [
                self._attend_with_recomputation(size, *(o[chunk] for o in operands)) for chunk in chunks
            ]
            return torch.cat(outputs)
        output = torch.empty_like(operands[2])
        for chunk in chunks:
            output[chunk] = self._attend(size, *(o[chunk] for o in operands))[0]
        return output

    def _attend_with_recomputation(self, size: tuple[int, int], *operands: Tensor) -> Tensor:
        """Return the output of `_attend`, recomputed in the backward pass with the same random draws."""
        generator: torch.Generator | None = getattr(self.probability_quantizer, "generator", None)
        attend = _with_same_draws(lambda *chunk: self._attend(size, *chunk)[0], generator)
        output: Tensor = checkpoint(attend, *operands, use_reentrant=False, preserve_rng_state=False)
        return output


def _with_same_draws(
    compute: Callable[..., Tensor], generator: torch.Generator | None
) -> Callable[..., Tensor]:
    """Wrap `compute` so that every call draws the same random numbers; only the first call advances the generator."""
    if generator is None:
        return compute
    first: list[Tensor] = []

    def compute_again(*operands: Tensor) -> Tensor:
        if not first:
            first.append(generator.get_state())
            return compute(*operands)
        now = generator.get_state()
        generator.set_state(first[0])
        try:
            return compute(*operands)
        finally:
            generator.set_state(now)

    return compute_again


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
