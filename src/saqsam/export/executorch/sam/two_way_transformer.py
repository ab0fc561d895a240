"""The two-way transformer of a mask decoder as a torch module to be traced.

Computation that all prompts share is done once: as long as image tokens do not depend on the prompts, they are
projected for one image instead of P, and the queries of all prompts are multiplied by the keys in one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saqsam.export.executorch.layers import check_float_attention, normalize, traced_linear
from saqsam.models.two_way import TwoWayNames


class TwoWayTransformer(nn.Module):
    """Two-way transformer for tokens [P, T, C] and image tokens, first [1, h * w, C] and then [P, h * w, C].

    Args:
        transformer: The two-way transformer of a model.
        names: Names of its layers.
    """

    def __init__(self, transformer: Any, names: TwoWayNames) -> None:
        super().__init__()
        where = "mask_decoder.transformer"
        self.layers = nn.ModuleList(
            _Layer(layer, names, f"{where}.layers.{index}") for index, layer in enumerate(transformer.layers)
        )
        name = "final_attn_token_to_image"
        self.final = _Attention(transformer.final_attn_token_to_image, names, f"{where}.{name}")
        self.norm = transformer.layer_norm_final_attn

    def forward(
        self, tokens: Tensor, image: Tensor, positions: Tensor, key_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run all layers and the final attention.

        Args:
            tokens: [P, T, C].
            image: Image tokens [1, h * w, C].
            positions: Positional embedding of the image tokens, [1, h * w, C].
            key_mask: [P, 1, 1, T], added to the logits of tokens as keys.

        Returns:
            Tokens [P, T, C] and image tokens [P, h * w, C].
        """
        points = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, points, positions, key_mask)
        attended = self.final(tokens + points, image + positions, image)
        return normalize(self.norm, tokens + attended), image


class _Layer(nn.Module):
    """Two-way layer: self-attention, attention of tokens to the image, MLP, attention of the image to tokens."""

    def __init__(self, layer: Any, names: TwoWayNames, where: str) -> None:
        super().__init__()
        self.is_first = layer.skip_first_layer_pe
        self.self_attn, self.to_image, self.to_tokens = (
            _Attention(getattr(layer, name), names, f"{where}.{name}")
            for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        )
        self.lin1, self.lin2 = (
            traced_linear(getattr(layer.mlp, name), f"{where}.mlp.{name}") for name in names.mlp
        )
        self.activation = getattr(layer.mlp, names.activation)
        self.norms = nn.ModuleList(getattr(layer, f"layer_norm{number}") for number in (1, 2, 3, 4))

    def forward(
        self, tokens: Tensor, image: Tensor, points: Tensor, positions: Tensor, key_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens, key_mask)
        else:
            query = tokens + points
            tokens = tokens + self.self_attn(query, query, tokens, key_mask)
        tokens = normalize(self.norms[0], tokens)
        positioned = image + positions
        attended = self.to_image(tokens + points, positioned, image)
        tokens = normalize(self.norms[1], tokens + attended)
        tokens = normalize(self.norms[2], tokens + self.lin2(self.activation(self.lin1(tokens))))
        attended = self.to_tokens(positioned, tokens + points, tokens, key_mask)
        return tokens, normalize(self.norms[3], image + attended)


class _Attention(nn.Module):
    """Attention from queries [B, Q, C] to keys and values [B', K, C], where B and B' are 1 or P: [P, Q, C]."""

    def __init__(self, attention: Any, names: TwoWayNames, where: str) -> None:
        super().__init__()
        check_float_attention(attention, where, "decoder")
        self.heads, self.scaling = attention.num_attention_heads, float(attention.scaling)
        self.q_proj = traced_linear(attention.q_proj, f"{where}.q_proj")
        self.k_proj = traced_linear(attention.k_proj, f"{where}.k_proj")
        self.v_proj = traced_linear(attention.v_proj, f"{where}.v_proj")
        self.out_proj = traced_linear(getattr(attention, names.output), f"{where}.{names.output}")

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        q, k, v = self.q_proj(query) * self.scaling, self.k_proj(key), self.v_proj(value)
        shares_keys = query.shape[0] != key.shape[0] and key.shape[0] == 1
        shares_queries = query.shape[0] != key.shape[0] and not shares_keys
        if shares_keys:
            average = self._average_for_shared_keys(q, k, v)
        else:
            logits = self._logits_for_shared_queries(q, k) if shares_queries else self._logits(q, k)
            if key_mask is not None:
                logits = logits + key_mask
            prompts, heads, queries, keys = logits.shape
            weights = logits.softmax(-1).reshape(prompts * heads, queries, keys)
            average = torch.bmm(weights, self._separate_heads(v).reshape(prompts * heads, keys, -1))
            average = average.reshape(prompts, heads, queries, -1).transpose(1, 2)
        output: Tensor = self.out_proj(average.reshape(average.shape[0], average.shape[1], -1))
        return output

    def _separate_heads(self, rows: Tensor) -> Tensor:
        """Separate the heads: [B, R, N * D] to [B, N, R, D]."""
        return rows.reshape(rows.shape[0], rows.shape[1], self.heads, -1).transpose(1, 2)

    def _logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the logits [P, N, Q, K] of queries [P, Q, N * D] and keys [P, K, N * D]."""
        prompts, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        query = self._separate_heads(q).reshape(prompts * self.heads, queries, -1)
        key = self._separate_heads(k).reshape(prompts * self.heads, keys, -1)
        return torch.bmm(query, key.transpose(1, 2)).reshape(prompts, self.heads, queries, keys)

    def _logits_for_shared_queries(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the logits [P, N, Q, K] of queries [1, Q, N * D] and the keys of all prompts, in one product."""
        prompts, queries, keys = k.shape[0], q.shape[1], k.shape[1]
        query = self._separate_heads(q).reshape(self.heads, queries, -1)
        key = self._separate_heads(k).permute(1, 3, 0, 2).reshape(self.heads, -1, prompts * keys)
        logits = torch.bmm(query, key).reshape(self.heads, queries, prompts, keys)
        return logits.permute(2, 0, 1, 3)

    def _average_for_shared_keys(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Average values [1, K, N * D] for the queries of all prompts in one product: [P, Q, N, D]."""
        prompts, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        query = self._separate_heads(q).transpose(0, 1).reshape(self.heads, prompts * queries, -1)
        key, value = (self._separate_heads(rows).reshape(self.heads, keys, -1) for rows in (k, v))
        average = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)
        return average.reshape(self.heads, prompts, queries, -1).permute(1, 2, 0, 3)
