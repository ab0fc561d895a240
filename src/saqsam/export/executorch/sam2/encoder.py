"""The image encoder of SAM 2 as a torch module to be traced, on rows of tokens, with attention in blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2Model

from saqsam.export.executorch.layers import (
    FloatConvolution,
    RowConvolution,
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
    to_rows,
    unpartition,
)
from saqsam.export.windows import CACHED_BLOCK_LOGITS, queries_per_block, window_of
from saqsam.models.sam2.resizing import bicubic_matrix
from saqsam.models.sam2.structure import BACKBONE, NECK, stage_starts


class TracedSam2Encoder(nn.Module):
    """Image encoder: `pixel_values` [1, 3, S, S] to the embedding and the high-resolution features, all float32.

    Args:
        model: The quantized model.
        max_block_logits: Global attentions with more logits are computed head by head, in blocks of queries with at
            most this many logits; None computes them at once.
    """

    def __init__(self, model: Sam2Model, max_block_logits: int | None = CACHED_BLOCK_LOGITS) -> None:
        super().__init__()
        config, backbone = model.config, model.vision_encoder.backbone
        stride = config.vision_config.backbone_config.patch_stride[0]
        side = config.prompt_encoder_config.image_size // stride
        self.patches = _Patches(backbone, side)
        self.starts = stage_starts(config)[1:]
        blocks, sides = [], []
        for index, block in enumerate(backbone.blocks):
            if index in self.starts:
                sides.append(side)
            blocks.append(_Block(block, side, max_block_logits, f"{BACKBONE}.blocks.{index}"))
            side = blocks[-1].new_side
        self.blocks = nn.ModuleList(blocks)
        self.neck = _Neck(model, [*sides, side])

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode pixel values [1, 3, S, S].

        Returns:
            Embedding [1, C, h, w] and high-resolution features [1, C / 8, 4h, 4w] and [1, C / 4, 2h, 2w].
        """
        rows, levels = self.patches(pixel_values), []
        for index, block in enumerate(self.blocks):
            if index in self.starts:
                levels.append(rows)
            rows = block(rows)
        found: tuple[Tensor, Tensor, Tensor] = self.neck([*levels, rows])
        return found


class _Patches(nn.Module):
    """Patch embedding plus positions: [1, h * w, C].

    The table of positions is interpolated in each call, which keeps the file small: bicubic interpolation is a product
    with one matrix along each axis.

    Attributes:
        by_row: Buffer, float32 [h, h'], from the rows of the table to those of the grid.
        by_column: Buffer, float32 [w, w'].
    """

    by_row: Tensor
    by_column: Tensor

    def __init__(self, backbone: Any, side: int) -> None:
        super().__init__()
        self.side, self.projection = side, FloatConvolution(backbone.patch_embed.projection)
        self.table, self.window = backbone.pos_embed, backbone.pos_embed_window
        high, wide = self.table.shape[2:]
        self.register_buffer("by_row", bicubic_matrix(high, side))
        self.register_buffer("by_column", bicubic_matrix(wide, side))

    def forward(self, pixel_values: Tensor) -> Tensor:
        placed: Tensor = to_rows(self.projection(pixel_values)) + self._positions()
        return placed

    def _positions(self) -> Tensor:
        """Return the absolute positions [1, h * w, C]."""
        side, (channels, high, wide) = self.side, self.table.shape[1:]
        table = self.table.permute(0, 2, 3, 1).reshape(1, high, wide * channels)
        tall = torch.bmm(self.by_row.reshape(1, side, high), table).reshape(side, wide, channels)
        large = torch.bmm(self.by_column.expand(side, -1, -1), tall)  # [h, w, C]
        size = self.window.shape[-1]
        tile = self.window.permute(0, 2, 3, 1).reshape(1, size, 1, size, channels)
        repeats = side // size
        tiles = tile.expand(repeats, -1, repeats, -1, -1).reshape(side, side, channels)
        positions: Tensor = (large + tiles).reshape(1, side * side, channels)
        return positions


class _Block(nn.Module):
    """Block of Hiera: rows [1, h * w, C] to [1, h' * w', C'].

    Attributes:
        new_side: Side of the grid after the block.
    """

    def __init__(self, block: Any, side: int, max_block_logits: int | None, where: str) -> None:
        super().__init__()
        self.side, self.stride = side, block.query_stride[0] if block.query_stride else 1
        self.new_side = side // self.stride
        self.norm1, self.norm2 = block.layer_norm1, block.layer_norm2
        self.proj = traced_linear(block.proj, f"{where}.proj") if block.dim != block.dim_out else None
        self.attention = _Attention(block, side, self.stride, max_block_logits, f"{where}.attn")
        self.proj_in = traced_linear(block.mlp.proj_in, f"{where}.mlp.proj_in")
        self.proj_out = traced_linear(block.mlp.proj_out, f"{where}.mlp.proj_out")
        self.activation = block.mlp.activation

    def forward(self, rows: Tensor) -> Tensor:
        normal = normalize(self.norm1, rows)
        if self.proj is not None:
            rows = self.proj(normal)
        if self.stride > 1:
            rows = _pool(rows, self.side, self.stride)
        rows = rows + self.attention(normal)
        hidden: Tensor = self.proj_out(self.activation(self.proj_in(normalize(self.norm2, rows))))
        return rows + hidden


class _Attention(nn.Module):
    """Windowed or global attention with float operands, whose queries may be pooled."""

    def __init__(self, block: Any, side: int, stride: int, max_block_logits: int | None, where: str) -> None:
        super().__init__()
        attention = block.attn
        check_float_attention(attention, where, "encoder")
        self.side, self.stride, self.heads = side, stride, attention.num_attention_heads
        self.window = window_of(block.window_size, side)
        self.scale = float(attention.scale)
        self.qkv = traced_linear(attention.qkv, f"{where}.qkv")
        self.proj = traced_linear(attention.proj, f"{where}.proj")
        self.queries = queries_per_block(self.heads, self.window, max_block_logits) if stride == 1 else None

    def forward(self, rows: Tensor) -> Tensor:
        window, stride = self.window, self.stride
        query, key, value = split_qkv(self.qkv(partition(rows, window, self.side)))  # each [W, L, C]
        if stride > 1:
            query = _pool(query, window.size[0], stride)
        query, key, value = (split_heads(part, self.heads) for part in (query, key, value))
        if self.queries is None:
            average = self._average(query, key, value)
        else:
            average = average_in_blocks(self._average, query, key, value, block=self.queries)
        joined = merge_heads(average, self.heads)
        output: Tensor = self.proj(unpartition(joined, window.pooled(stride), self.side // stride))
        return output

    def _average(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Average values [B, L, D] for queries [B, Q, D] and keys [B, L, D]."""
        return torch.bmm(torch.bmm(query * self.scale, key.transpose(1, 2)).softmax(-1), value)


def _pool(rows: Tensor, side: int, stride: int) -> Tensor:
    """Max-pool the rows of square grids, [W, side * side, C]: [W, (side / stride)**2, C]."""
    half, channels = side // stride, rows.shape[-1]
    by_row = _largest(rows.reshape(-1, stride, side * channels))
    return _largest(by_row.reshape(-1, stride, channels)).reshape(-1, half * half, channels)


def _largest(values: Tensor) -> Tensor:
    """Return the maximum over the second axis, [N, S, K] to [N, 1, K]; XNNPACK has only a maximum of two tensors."""
    largest = values[:, :1]
    for index in range(1, values.shape[1]):
        largest = torch.maximum(largest, values[:, index : index + 1])
    return largest


class _Neck(nn.Module):
    """Feature pyramid: rows of the four stages, the finest first, to the encoder's outputs."""

    def __init__(self, model: Sam2Model, sides: list[int]) -> None:
        super().__init__()
        self.sides, self.no_memory = sides, model.no_memory_embedding
        convs, decoder = model.vision_encoder.neck.convs, model.mask_decoder
        self.levels = nn.ModuleList(
            RowConvolution(conv, sides[3 - index], f"{NECK}.convs.{index}")
            for index, conv in enumerate(convs)
        )
        self.readers = nn.ModuleList(
            reader
            if isinstance(reader, nn.Identity)
            else RowConvolution(reader, sides[index], f"mask_decoder.conv_s{index}")
            for index, reader in enumerate((decoder.conv_s0, decoder.conv_s1))
        )

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        finest, fine, middle, coarse = levels
        top, side = self.levels[0](coarse), self.sides[3]
        top = top.reshape(side, 1, side, 1, -1).expand(-1, 2, -1, 2, -1).reshape(1, 4 * side * side, -1)
        embedding = self.levels[1](middle) + top + self.no_memory.reshape(1, 1, -1)
        first, second = (
            to_map(self.readers[index](self.levels[3 - index](rows)), self.sides[index])
            for index, rows in enumerate((finest, fine))
        )
        return to_map(embedding, self.sides[2]), first, second
