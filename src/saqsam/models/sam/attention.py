"""SAM's two kinds of attention with quantizers on the operands of their products.

Each has four slots: `query_quantizer`, `key_quantizer`, `value_quantizer` and `probability_quantizer`,
holding `nn.Identity` until an observer or a quantizer takes the place. With empty slots both compute exactly
what transformers' eager attentions compute (tested).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.sam.modeling_sam import SamAttention, SamVisionAttention

from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.layers import PackedLinear
from saqsam.quant.learned import RandomDrop
from saqsam.quant.logarithmic import LogQuantizer

PROBABILITIES = "probability_quantizer"
MIN_NUMERATOR_SUM = 1e-6
"""Of a row of quantized numerators, which a learned scale could round to nothing."""
MAX_CHUNK_LOGITS = 2**25
"""Of an encoder attention: more are computed a few heads at a time and, where gradients are kept, once more for these.
A global attention of SAM-B at 1024 px has 2e8; quantizing takes about five values of each at once, learning eight."""
SLOTS = ("query_quantizer", "key_quantizer", "value_quantizer", PROBABILITIES)


_ELEMENTWISE = (nn.Identity, AffineQuantizer, LogQuantizer, RandomDrop)
"""What may be given the probabilities in parts; an observer may not."""


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
        total = numerators.sum(-1, keepdim=True).clamp_min(MIN_NUMERATOR_SUM)
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

    def forward(
        self, hidden_states: Tensor, output_attentions: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within hidden_states [B, h, w, C].

        Returns:
            Output [B, h, w, C] and probabilities [B * N, h * w, h * w]; None for these where a checkpoint's products
            are float, and where gradients are kept and there are more than `MAX_CHUNK_LOGITS`.
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
            output, probabilities = self._attend_in_groups((height, width), *operands)
        else:
            output, probabilities = self._attend((height, width), *operands)
        output = output.reshape(batch, heads, height, width, -1)
        output = output.permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels)
        return self.proj(output), probabilities

    def _attend(
        self, size: tuple[int, int], query: Tensor, key: Tensor, value: Tensor, source: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output [M, h * w, D] and probabilities [M, h * w, h * w] of M heads; `source` gives relative positions."""
        logits = (query * self.scale) @ key.transpose(-2, -1)
        if self.use_rel_pos:
            rel_pos = self.get_decomposed_rel_pos(source, self.rel_pos_h, self.rel_pos_w, size, size)
            logits = logits + rel_pos.reshape_as(logits)
        found: tuple[Tensor, Tensor] = self.product(logits, value, self.probability_quantizer)
        return found

    def _is_fused(self) -> bool:
        """Whether this is a checkpoint's attention whose products are float."""
        return isinstance(self.qkv, PackedLinear) and all(
            isinstance(getattr(self, slot), nn.Identity) for slot in SLOTS
        )

    def _attend_fused(self, size: tuple[int, int], *operands: Tensor) -> Tensor:
        """The output of `_attend` where nothing is rounded, by torch's fused attention."""
        # On a CPU a few heads at a time, whose relative positions fit into its cache; a GPU wants all work at once.
        matrices = self._at_once(operands[0]) if operands[0].device.type == "cpu" else len(operands[0])
        outputs = []
        for query, key, value, source in zip(*(torch.split(o, matrices) for o in operands), strict=True):
            bias = None
            if self.use_rel_pos:
                bias = self.get_decomposed_rel_pos(source, self.rel_pos_h, self.rel_pos_w, size, size)
                bias = bias.reshape(1, *query.shape[:2], -1).to(query.dtype)
            found = F.scaled_dot_product_attention(
                query[None], key[None], value[None], bias, scale=self.scale
            )
            outputs.append(found[0])
        return torch.cat(outputs)

    @staticmethod
    def _at_once(operand: Tensor) -> int:
        """How many matrices [M, T, D] are attended to at once."""
        return max(1, MAX_CHUNK_LOGITS // operand.shape[1] ** 2)

    def _attend_in_groups(self, size: tuple[int, int], *operands: Tensor) -> tuple[Tensor, Tensor | None]:
        """`_attend`, some heads at a time; the probabilities are None where gradients are kept."""
        matrices, tokens = operands[0].shape[:2]
        at_once = self._at_once(operands[0])
        groups = [slice(start, start + at_once) for start in range(0, matrices, at_once)]
        if torch.is_grad_enabled():
            return torch.cat(
                [self._recomputed(size, *(o[group] for o in operands)) for group in groups]
            ), None
        output, probabilities = torch.empty_like(operands[2]), operands[0].new_empty(matrices, tokens, tokens)
        for group in groups:
            output[group], probabilities[group] = self._attend(size, *(o[group] for o in operands))
        return output, probabilities

    def _recomputed(self, size: tuple[int, int], *operands: Tensor) -> Tensor:
        """The output of `_attend`, computed once more for the gradients, with the same random draws."""
        generator: torch.Generator | None = getattr(self.probability_quantizer, "generator", None)
        attend = _with_same_draws(lambda *given: self._attend(size, *given)[0], generator)
        output: Tensor = checkpoint(attend, *operands, use_reentrant=False, preserve_rng_state=False)
        return output


def _with_same_draws(
    compute: Callable[..., Tensor], generator: torch.Generator | None
) -> Callable[..., Tensor]:
    """`compute`, which draws from a generator the same each time it is called; calls but the first leave it alone."""
    if generator is None:
        return compute
    first: list[Tensor] = []

    def again(*given: Tensor) -> Tensor:
        if not first:
            first.append(generator.get_state())
            return compute(*given)
        now = generator.get_state()
        generator.set_state(first[0])
        try:
            return compute(*given)
        finally:
            generator.set_state(now)

    return again


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
