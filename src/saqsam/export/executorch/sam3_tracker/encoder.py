"""The image encoder of SAM 3's tracker as a torch module to be traced, on rows of tokens, with attention in blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam3TrackerModel

from saqsam.export.executorch.layers import (
    FloatConvolution,
    RowConvolution,
    RowLinear,
    check_float_attention,
    normalize,
    traced_linear,
)
from saqsam.export.executorch.rows import (
    average_in_blocks,
    merge_heads,
    partition,
    split_heads,
    to_map,
    to_rows,
    unpartition,
)
from saqsam.export.executorch.sam.decoder import Upscale, pixels_in_order
from saqsam.export.windows import CACHED_BLOCK_LOGITS, queries_per_block, window_of
from saqsam.models.sam3_tracker.structure import BACKBONE, NECK


class TracedSam3TrackerEncoder(nn.Module):
    """Image encoder: `pixel_values` [1, 3, S, S] to the embedding and the high-resolution features, all float32.

    Args:
        model: The quantized model.
        max_block_logits: Global attentions with more logits are computed head by head, in blocks of queries with at
            most this many logits; None computes them at once.
    """

    def __init__(self, model: Sam3TrackerModel, max_block_logits: int | None = CACHED_BLOCK_LOGITS) -> None:
        super().__init__()
        backbone = model.vision_encoder.backbone
        side = backbone.config.image_size // backbone.config.patch_size
        self.patches = _Patches(backbone.embeddings, side)
        self.norm = backbone.layer_norm
        self.blocks = nn.ModuleList(
            _Block(block, side, max_block_logits, f"{BACKBONE}.layers.{index}")
            for index, block in enumerate(backbone.layers)
        )
        self.neck = _Neck(model, side)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode pixel values [1, 3, S, S].

        Returns:
            Embedding [1, C, h, w] and high-resolution features [1, C / 8, 4h, 4w] and [1, C / 4, 2h, 2w].
        """
        rows = normalize(self.norm, self.patches(pixel_values))
        for block in self.blocks:
            rows = block(rows)
        found: tuple[Tensor, Tensor, Tensor] = self.neck(rows)
        return found


class _Patches(nn.Module):
    """Patch embedding plus positions, tiled from a small table: [1, h * w, C]."""

    def __init__(self, embeddings: Any, side: int) -> None:
        super().__init__()
        self.side, self.projection = side, FloatConvolution(embeddings.patch_embeddings.projection)
        self.table = embeddings.position_embeddings

    def forward(self, pixel_values: Tensor) -> Tensor:
        side, channels = self.side, self.table.shape[-1]
        small = int(self.table.shape[1] ** 0.5)
        repeats = -(-side // small)
        tiles = self.table.reshape(1, small, 1, small, channels).expand(repeats, -1, repeats, -1, -1)
        positions = tiles.reshape(repeats * small, repeats * small, channels)[:side, :side]
        placed: Tensor = to_rows(self.projection(pixel_values)) + positions.reshape(1, side * side, channels)
        return placed


class _Block(nn.Module):
    """Transformer block on rows [1, h * w, C]."""

    def __init__(self, block: Any, side: int, max_block_logits: int | None, where: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.layer_norm1, block.layer_norm2
        self.attention = _Attention(block, side, max_block_logits, f"{where}.attention")
        self.fc1 = traced_linear(block.mlp.fc1, f"{where}.mlp.fc1")
        self.fc2 = traced_linear(block.mlp.fc2, f"{where}.mlp.fc2")
        self.activation = block.mlp.activation_fn

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attention(normalize(self.norm1, rows))
        hidden: Tensor = self.fc2(self.activation(self.fc1(normalize(self.norm2, rows))))
        return rows + hidden


class _Attention(nn.Module):
    """Windowed or global attention with rotary positions and float operands.

    Positions rotate neighboring channels of queries and keys. Their projections are stored with the first channels of
    all pairs before the second ones, which changes no product of a query and a key.

    Attributes:
        cosine: Buffer, float32 [1, L, D / 2].
        sine: Buffer, float32 [1, L, D / 2].
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, block: Any, side: int, max_block_logits: int | None, where: str) -> None:
        super().__init__()
        attention = block.attention
        check_float_attention(attention, where, "encoder")
        self.side, self.heads = side, attention.num_attention_heads
        self.window = window_of(block.window_size, side)
        self.scale = float(attention.scaling)
        width = attention.hidden_size // self.heads
        order = (
            torch.arange(attention.hidden_size).reshape(self.heads, width // 2, 2).transpose(1, 2).flatten()
        )
        self.q_proj, self.k_proj = (
            _reordered(getattr(attention, name), order, f"{where}.{name}") for name in ("q_proj", "k_proj")
        )
        self.v_proj = traced_linear(attention.v_proj, f"{where}.v_proj")
        self.o_proj = traced_linear(attention.o_proj, f"{where}.o_proj")
        for name, table in zip(
            ("cosine", "sine"), block.rotary_emb(block.position_ids.float(), block.position_ids), strict=True
        ):
            self.register_buffer(name, table[..., ::2].reshape(1, -1, width // 2).detach().cpu().contiguous())
        self.queries = queries_per_block(self.heads, self.window, max_block_logits)

    def forward(self, rows: Tensor) -> Tensor:
        windows = partition(rows, self.window, self.side)
        query, key, value = (
            split_heads(layer(windows), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )  # each [W * N, L, D]
        query, key = self._rotate(query) * self.scale, self._rotate(key).transpose(1, 2)
        if self.queries is None:
            average = _average(query, key, value)
        else:
            average = average_in_blocks(_average, query, key, value, block=self.queries)
        joined = merge_heads(average, self.heads)
        output: Tensor = self.o_proj(unpartition(joined, self.window, self.side))
        return output

    def _rotate(self, values: Tensor) -> Tensor:
        """Rotate queries or keys [W * N, L, D] by their positions."""
        half = values.shape[-1] // 2
        first, second = values[..., :half], values[..., half:]
        turned = (first * self.cosine - second * self.sine, second * self.cosine + first * self.sine)
        return torch.cat(turned, dim=-1)


def _average(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Average values [B, L, D] for queries [B, Q, D] and keys [B, D, L]."""
    return torch.bmm(torch.bmm(query, key).softmax(-1), value)


def _reordered(layer: Any, order: Tensor, where: str) -> RowLinear:
    """Return a linear layer with its output channels in another order."""
    return RowLinear(layer, where, lambda weight: weight[order], layer.bias.detach()[order])


class _Neck(nn.Module):
    """Levels of the neck that the decoder reads: rows [1, h * w, C] to the encoder's outputs."""

    def __init__(self, model: Sam3TrackerModel, side: int) -> None:
        super().__init__()
        self.side, self.no_memory = side, model.no_memory_embedding
        levels, decoder = model.vision_encoder.neck.fpn_layers, model.mask_decoder
        self.finest, self.fine, self.same = (
            _Level(levels[index], side, f"{NECK}.fpn_layers.{index}") for index in range(3)
        )
        self.readers = nn.ModuleList(
            reader
            if isinstance(reader, nn.Identity)
            else RowConvolution(reader, level.side, f"mask_decoder.conv_s{index}")
            for index, (reader, level) in enumerate(
                ((decoder.conv_s0, self.finest), (decoder.conv_s1, self.fine))
            )
        )

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedding = self.same(rows) + self.no_memory.reshape(1, 1, -1)
        first, second = (
            to_map(reader(level(rows)), level.side)
            for reader, level in zip(self.readers, (self.finest, self.fine), strict=True)
        )
        return to_map(embedding, self.side), first, second


class _Level(nn.Module):
    """Level of the neck: up to two transposed convolutions, then two convolutions; rows [1, h * w, C] to rows.

    Attributes:
        side: Side of the level's grid.
    """

    def __init__(self, level: Any, side: int, where: str) -> None:
        super().__init__()
        self.start = side
        self.scaling = nn.ModuleList(
            layer if isinstance(layer, nn.GELU) else Upscale(layer, f"{where}.scale_layers.{index}")
            for index, layer in enumerate(level.scale_layers)
        )
        self.doublings = sum(isinstance(layer, Upscale) for layer in self.scaling)
        self.side = side << self.doublings
        # A 1 x 1 convolution takes its rows in any order.
        self.proj1 = RowConvolution(level.proj1, self.side, f"{where}.proj1")
        self.proj2 = RowConvolution(level.proj2, self.side, f"{where}.proj2")

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.scaling:
            rows = layer(rows)
        rows = self.proj1(rows)
        if self.doublings == 2:
            rows = to_rows(pixels_in_order(rows, self.start))
        elif self.doublings == 1:
            grid = rows.reshape(self.start, self.start, 2, -1).transpose(1, 2)
            rows = grid.reshape(1, self.side * self.side, -1)
        output: Tensor = self.proj2(rows)
        return output
