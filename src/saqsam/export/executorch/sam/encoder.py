"""The image encoder of SAM v1 as a torch module to be traced, on rows of tokens, with attention in blocks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamModel

from saqsam.export.executorch.layers import (
    RowConvolution,
    StoredTensor,
    check_float_attention,
    normalize,
    traced_linear,
)
from saqsam.export.executorch.rows import (
    average_in_blocks,
    merge_heads,
    partition,
    split_heads,
    split_qkv,
    to_map,
    unpartition,
)
from saqsam.export.packed import ExportError
from saqsam.export.windows import CACHED_BLOCK_LOGITS, Window, queries_per_block, window_of
from saqsam.quant.layers import PackedConv2d, PackedTensor


class TracedEncoder(nn.Module):
    """Image encoder: `pixel_values` [1, 3, S, S] to the image embedding [1, C, h, w], both float32.

    Args:
        model: The quantized model.
        max_block_logits: Global attentions with more logits are computed head by head, in blocks of queries with at
            most this many logits; None computes them at once.
    """

    def __init__(self, model: SamModel, max_block_logits: int | None = CACHED_BLOCK_LOGITS) -> None:
        super().__init__()
        config, encoder = model.config.vision_config, model.vision_encoder
        side = config.image_size // config.patch_size
        self.patches = _Patches(encoder, side, config.patch_size)
        self.blocks = nn.ModuleList(
            _Block(layer, side, max_block_logits, f"vision_encoder.layers.{index}")
            for index, layer in enumerate(encoder.layers)
        )
        self.neck = Neck(encoder.neck, side)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed pixel values [1, 3, S, S]: [1, C, h, w]."""
        rows = self.patches(pixel_values)
        for block in self.blocks:
            rows = block(rows)
        embedding: Tensor = self.neck(rows)
        return embedding


class _Patches(nn.Module):
    """Patch embedding as a matrix product, plus positions: [1, h * w, C]."""

    def __init__(self, encoder: Any, side: int, patch: int) -> None:
        super().__init__()
        projection = encoder.patch_embed.projection
        self.side, self.patch, self.bias = side, patch, projection.bias
        is_packed = isinstance(projection, PackedConv2d)
        self.stored_weight = StoredTensor(projection.weight) if is_packed else None
        self.weight = None if is_packed else projection.weight
        packed = encoder._modules.get("packed_pos_embed")
        self.stored_positions = StoredTensor(packed) if isinstance(packed, PackedTensor) else None
        self.positions = encoder.pos_embed if self.stored_positions is None else None

    def forward(self, pixel_values: Tensor) -> Tensor:
        side, patch = self.side, self.patch
        tiles = pixel_values.reshape(-1, side, patch, side, patch).permute(1, 3, 0, 2, 4)
        tiles = tiles.reshape(1, side * side, -1)  # [1, h * w, 3 * p * p]
        weight = self.weight if self.stored_weight is None else self.stored_weight()
        assert weight is not None
        rows = torch.bmm(tiles, weight.reshape(1, weight.shape[0], -1).transpose(1, 2))
        if self.bias is not None:
            rows = rows + self.bias
        positions = self.positions if self.stored_positions is None else self.stored_positions()
        return rows if positions is None else rows + positions.reshape(1, side * side, -1)


class _Block(nn.Module):
    """One transformer block on rows [1, h * w, C]."""

    def __init__(self, layer: Any, side: int, max_block_logits: int | None, where: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer.layer_norm1, layer.layer_norm2
        window = window_of(layer.window_size, side)
        self.attention = _Attention(layer.attn, side, window, max_block_logits, f"{where}.attn")
        self.lin1 = traced_linear(layer.mlp.lin1, f"{where}.mlp.lin1")
        self.lin2 = traced_linear(layer.mlp.lin2, f"{where}.mlp.lin2")
        self.activation = layer.mlp.act

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attention(normalize(self.norm1, rows))
        hidden: Tensor = self.lin2(self.activation(self.lin1(normalize(self.norm2, rows))))
        return rows + hidden


class _Attention(nn.Module):
    """Windowed or global attention with decomposed relative positions and float operands."""

    def __init__(
        self, attention: Any, side: int, window: Window, max_block_logits: int | None, where: str
    ) -> None:
        super().__init__()
        check_float_attention(attention, where, "encoder")
        self.side, self.window, self.heads = side, window, attention.num_attention_heads
        self.scale = float(attention.scale)
        self.qkv = traced_linear(attention.qkv, f"{where}.qkv")
        self.proj = traced_linear(attention.proj, f"{where}.proj")
        self.queries = queries_per_block(self.heads, window, max_block_logits)
        self.by_row = self.by_column = None
        if attention.use_rel_pos:
            self.by_row = _DistanceTable(attention.rel_pos_h, window.size[0], f"{where}.rel_pos_h")
            self.by_column = _DistanceTable(attention.rel_pos_w, window.size[1], f"{where}.rel_pos_w")

    def forward(self, rows: Tensor) -> Tensor:
        qkv = self.qkv(partition(rows, self.window, self.side))  # [W, L, 3 * C]
        query, key, value = (split_heads(part, self.heads) for part in split_qkv(qkv))
        key = key.transpose(1, 2)
        added = self._relative_positions(query)
        if self.queries is None:
            average = self._average(query, key, value, *added)
        else:
            average = average_in_blocks(self._average, query, key, value, *added, block=self.queries)
        output: Tensor = self.proj(unpartition(merge_heads(average, self.heads), self.window, self.side))
        return output

    def _average(self, query: Tensor, key: Tensor, value: Tensor, *added: Tensor) -> Tensor:
        """Average values [B, L, D] for queries [B, Q, D] and keys [B, D, L]; `added` are relative positions."""
        logits = torch.bmm(query * self.scale, key)
        if added:
            shape, (high, wide) = logits.shape, self.window.size
            logits = logits.reshape(*shape[:2], high, wide) + added[0].reshape(*shape[:2], high, 1)
            logits = (logits + added[1].reshape(*shape[:2], 1, wide)).reshape(shape)
        return torch.bmm(logits.softmax(-1), value)

    def _relative_positions(self, query: Tensor) -> list[Tensor]:
        """Return the relative positions of queries [B, L, D] by key row [B, L, h] and by key column [B, L, w]."""
        if self.by_row is None or self.by_column is None:
            return []
        (high, wide), count = self.window.size, len(query)
        grid = query.reshape(count, high, wide, -1)
        rows = grid.transpose(0, 1).reshape(high, count * wide, -1)
        by_row = torch.bmm(rows, self.by_row()).reshape(high, count, wide, high).transpose(0, 1)
        columns = grid.permute(2, 0, 1, 3).reshape(wide, count * high, -1)
        by_column = torch.bmm(columns, self.by_column()).reshape(wide, count, high, wide).permute(1, 2, 0, 3)
        return [part.reshape(count, high * wide, -1) for part in (by_row, by_column)]


class _DistanceTable(nn.Module):
    """Table of learned vectors by distance [2 S - 1, D], expanded in each call to all queries and keys [S, D, S].

    Attributes:
        index: Buffer, int64 [S, S].
    """

    index: Tensor

    def __init__(self, table: Tensor, size: int, where: str) -> None:
        super().__init__()
        if len(table) != 2 * size - 1:
            raise ExportError(
                f"{where}: expected {2 * size - 1} distances for {size} positions, got {len(table)}"
            )
        places = torch.arange(size)
        self.table = table
        self.register_buffer("index", places[:, None] - places[None, :] + size - 1)

    def forward(self) -> Tensor:
        return F.embedding(self.index, self.table).transpose(1, 2)


class Neck(nn.Module):
    """Neck: rows [1, h * w, C] to the embedding [1, C', h, w]."""

    def __init__(self, neck: Any, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv1 = RowConvolution(neck.conv1, side, "vision_encoder.neck.conv1")
        self.conv2 = RowConvolution(neck.conv2, side, "vision_encoder.neck.conv2")
        self.norm1, self.norm2 = neck.layer_norm1, neck.layer_norm2

    def forward(self, rows: Tensor) -> Tensor:
        """Turn rows [1, h * w, C] into the embedding [1, C', h, w]."""
        rows = normalize(self.norm1, self.conv1(rows))
        rows = normalize(self.norm2, self.conv2(rows))
        return to_map(rows, self.side)
