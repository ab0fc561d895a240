"""The image encoder of MobileSAM as a torch module to be traced, on rows of tokens.

Pointwise convolutions and linear layers are matrix products on rows. Depthwise convolutions and the patch embedding are
float convolutions on maps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.export.executorch.layers import (
    FloatConvolution,
    RowConvolution,
    check_float_attention,
    normalize,
    traced_linear,
)
from saqsam.export.executorch.rows import (
    merge_heads,
    partition,
    split_heads,
    split_qkv,
    to_map,
    to_rows,
    unpartition,
)
from saqsam.export.executorch.sam.encoder import Neck
from saqsam.export.windows import window_of
from saqsam.models.mobile_sam.model import MobileSamModel, block_names
from saqsam.models.mobile_sam.tiny_vit import MobileSamMBConv, MobileSamPatchMerging


class TracedMobileSamEncoder(nn.Module):
    """Image encoder: `pixel_values` [1, 3, S, S] to the image embedding [1, C, h, w], both float32.

    Args:
        model: The quantized model.
    """

    def __init__(self, model: MobileSamModel) -> None:
        super().__init__()
        config, embedding = model.config.vision_config, model.vision_encoder.patch_embed
        self.conv1, self.conv2 = FloatConvolution(embedding.conv1), FloatConvolution(embedding.conv2)
        self.activation = embedding.act
        side = config.grids[0]
        self.blocks = nn.ModuleList()
        for where in (name for stage in block_names(config) for name in stage):
            block = model.get_submodule(where)
            if isinstance(block, MobileSamMBConv):
                self.blocks.append(_Bottleneck(block, side, where))
            elif isinstance(block, MobileSamPatchMerging):
                merging = _Separable(block, side, where)
                self.blocks.append(merging)
                side = merging.new_side
            else:
                self.blocks.append(_Block(block, side, where))
        self.neck = Neck(model.vision_encoder.neck, side)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed pixel values [1, 3, S, S]: [1, C, h, w]."""
        rows = to_rows(self.conv2(self.activation(self.conv1(pixel_values))))
        for block in self.blocks:
            rows = block(rows)
        embedding: Tensor = self.neck(rows)
        return embedding


class _Separable(nn.Module):
    """Pointwise, depthwise and pointwise convolution: rows [1, h * w, C] to [1, h' * w', C'].

    Attributes:
        new_side: Side of the grid after the depthwise convolution.
    """

    def __init__(self, block: Any, side: int, where: str) -> None:
        super().__init__()
        self.side, self.new_side = side, -(-side // block.depthwise_conv.stride[0])
        self.pointwise1 = RowConvolution(block.pointwise_conv1, side, f"{where}.pointwise_conv1")
        self.depthwise = FloatConvolution(block.depthwise_conv)
        self.pointwise2 = RowConvolution(block.pointwise_conv2, self.new_side, f"{where}.pointwise_conv2")
        self.activation = block.act

    def forward(self, rows: Tensor) -> Tensor:
        image = to_map(self.activation(self.pointwise1(rows)), self.side)
        mixed: Tensor = self.pointwise2(self.activation(to_rows(self.depthwise(image))))
        return mixed


class _Bottleneck(_Separable):
    """Inverted bottleneck with a residual connection, on rows [1, h * w, C]."""

    def forward(self, rows: Tensor) -> Tensor:
        activated: Tensor = self.activation(rows + super().forward(rows))
        return activated


class _Block(nn.Module):
    """TinyViT block on rows [1, h * w, C]."""

    def __init__(self, block: Any, side: int, where: str) -> None:
        super().__init__()
        self.side = side
        self.attention = _Attention(block, side, f"{where}.attn")
        self.local_conv = FloatConvolution(block.local_conv)
        self.norm = block.layer_norm2
        self.lin1 = traced_linear(block.mlp.lin1, f"{where}.mlp.lin1")
        self.lin2 = traced_linear(block.mlp.lin2, f"{where}.mlp.lin2")
        self.activation = block.mlp.act

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attention(rows)
        rows = to_rows(self.local_conv(to_map(rows, self.side)))
        hidden: Tensor = self.lin2(self.activation(self.lin1(normalize(self.norm, rows))))
        return rows + hidden


class _Attention(nn.Module):
    """Normalization and windowed attention with learned biases, float operands: rows [1, h * w, C] to the same.

    Attributes:
        distances: Buffer, int64 [w, w]: distance of each pair of positions along one axis.
    """

    distances: Tensor

    def __init__(self, block: Any, side: int, where: str) -> None:
        super().__init__()
        attention = block.attn
        check_float_attention(attention, where, "encoder")
        self.side, self.heads = side, attention.num_attention_heads
        self.window = window_of(block.window_size, side)
        self.scale, self.norm = float(attention.scale), block.layer_norm1
        self.qkv = traced_linear(attention.qkv, f"{where}.qkv")
        self.proj = traced_linear(attention.proj, f"{where}.proj")
        self.biases = attention.attention_biases
        places = torch.arange(block.window_size)
        self.register_buffer("distances", (places[:, None] - places[None, :]).abs())

    def forward(self, rows: Tensor) -> Tensor:
        count, tokens, heads = self.window.count, self.window.tokens, self.heads
        # Windows are padded before the normalization.
        qkv = self.qkv(normalize(self.norm, partition(rows, self.window, self.side)))  # [W, L, 3 * C]
        query, key, value = (split_heads(part, heads) for part in split_qkv(qkv))
        logits = torch.bmm(query * self.scale, key.transpose(1, 2)).reshape(count, heads, tokens, tokens)
        weights = (logits + self._position_bias()).softmax(-1).reshape(count * heads, tokens, tokens)
        average = merge_heads(torch.bmm(weights, value), heads)
        output: Tensor = self.proj(unpartition(average, self.window, self.side))
        return output

    def _position_bias(self) -> Tensor:
        """Return the bias of each pair of positions, [1, N, L, L], from the biases by distance [N, w * w]."""
        heads, size = self.heads, self.distances.shape[0]
        table = self.biases.reshape(heads, size, size).transpose(0, 1).reshape(size, heads * size)
        by_row = F.embedding(self.distances, table).reshape(size * size * heads, size)  # [y, y', N, |dx|]
        both = F.embedding(self.distances, by_row.transpose(0, 1))  # [x, x', y * y' * N]
        both = both.reshape(size, size, size, size, heads).permute(4, 2, 0, 3, 1)
        return both.reshape(1, heads, size * size, size * size)
