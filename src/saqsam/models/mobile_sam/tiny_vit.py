"""TinyViT (arXiv 2207.10666) for inference, as MobileSAM uses it: blocks, patch merging and windowed attention.

Written from the paper. Every batch normalization is folded into its convolution, so that all layers with weights are
plain `nn.Conv2d` and `nn.Linear`. Feature maps between modules are channels-last, [B, h, w, C].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from saqsam.models.mobile_sam.configuration import MobileSamVisionConfig


class MobileSamPatchEmbeddings(nn.Module):
    """Two 3 x 3 convolutions of stride 2 with an activation between them."""

    def __init__(self, config: MobileSamVisionConfig) -> None:
        super().__init__()
        width = config.hidden_sizes[0]
        self.image_shape = (config.num_channels, config.image_size, config.image_size)
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1)
        self.act = ACT2FN[config.hidden_act]
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed pixel values [B, 3, S, S] as [B, S / 4, S / 4, C].

        Raises:
            ValueError: The model expects images of another size.
        """
        if pixel_values.shape[1:] != self.image_shape:
            raise ValueError(
                f"pixel_values: expected images of shape {self.image_shape}, got {tuple(pixel_values.shape[1:])}"
            )
        return _channels_last(self.conv2(self.act(self.conv1(pixel_values))))


class MobileSamMBConv(nn.Module):
    """Inverted bottleneck with a residual connection: a block of stage 0."""

    def __init__(self, config: MobileSamVisionConfig, width: int) -> None:
        super().__init__()
        hidden = round(width * config.expand_ratio)
        self.pointwise_conv1 = nn.Conv2d(width, hidden, 1)
        self.depthwise_conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.pointwise_conv2 = nn.Conv2d(hidden, width, 1)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the activated sum of the input [B, h, w, C] and its convolutions, in the same shape."""
        features = _channels_first(hidden_states)
        features = self.act(self.pointwise_conv1(features))
        features = self.act(self.depthwise_conv(features))
        features = _channels_last(self.pointwise_conv2(features))
        activated: Tensor = self.act(hidden_states + features)
        return activated


class MobileSamPatchMerging(nn.Module):
    """Convolutions between two stages, which change the width and may reduce the grid.

    Args:
        config: Configuration of the encoder.
        stage: Index of the stage before it.
    """

    def __init__(self, config: MobileSamVisionConfig, stage: int) -> None:
        super().__init__()
        width, merged = config.hidden_sizes[stage], config.hidden_sizes[stage + 1]
        stride = config.merge_strides[stage]
        self.pointwise_conv1 = nn.Conv2d(width, merged, 1)
        self.depthwise_conv = nn.Conv2d(merged, merged, 3, stride=stride, padding=1, groups=merged)
        self.pointwise_conv2 = nn.Conv2d(merged, merged, 1)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Turn [B, h, w, C] into [B, h / stride, w / stride, C'] with the channels of the next stage."""
        features = _channels_first(hidden_states)
        features = self.act(self.pointwise_conv1(features))
        features = self.act(self.depthwise_conv(features))
        return _channels_last(self.pointwise_conv2(features))


class MobileSamMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: MobileSamVisionConfig, width: int) -> None:
        super().__init__()
        hidden = round(width * config.mlp_ratio)
        self.lin1 = nn.Linear(width, hidden)
        self.act = ACT2FN[config.hidden_act]
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        mapped: Tensor = self.lin2(self.act(self.lin1(hidden_states)))
        return mapped


class MobileSamVisionAttention(nn.Module):
    """Self-attention within a window, with a learned bias for each relative offset.

    `qkv` computes queries, keys and values, in this order, each with all heads, as transformers' `SamVisionAttention`
    does.

    Args:
        width: Channels C.
        heads: Number of heads N.
        window: Side of the window in positions, w.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.window_size = window
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Attend within windows.

        Args:
            hidden_states: Normalized windows [B, w, w, C].

        Returns:
            Output [B, w, w, C] and probabilities [B, N, w * w, w * w].
        """
        query, key, value = self.split_heads(self.qkv(hidden_states))
        logits = (query * self.scale) @ key.transpose(-2, -1) + self.position_bias()
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32).to(value.dtype)
        return self.proj(self.merge_heads(probabilities @ value)), probabilities

    def split_heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the output of `qkv` [B, w, w, 3 * C] into queries, keys and values [B, N, w * w, C / N]."""
        heads = projected.reshape(len(projected), self.window_size**2, 3, self.num_attention_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def merge_heads(self, attended: Tensor) -> Tensor:
        """Turn attended values [B, N, w * w, C / N] into [B, w, w, C]."""
        return attended.transpose(1, 2).reshape(len(attended), self.window_size, self.window_size, -1)

    def position_bias(self) -> Tensor:
        """Return the bias of each pair of positions, [N, w * w, w * w], which is added to the logits."""
        return self.attention_biases[:, offset_indexes(self.window_size, self.attention_biases.device)]


class MobileSamVisionLayer(nn.Module):
    """TinyViT block: windowed attention, a depthwise convolution, and an MLP.

    Args:
        config: Configuration of the encoder.
        stage: Index of the stage that it belongs to.
    """

    def __init__(self, config: MobileSamVisionConfig, stage: int) -> None:
        super().__init__()
        width, kernel = config.hidden_sizes[stage], config.local_conv_size
        self.window_size = config.window_sizes[stage]
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attn = MobileSamVisionAttention(width, config.num_attention_heads[stage], self.window_size)
        self.local_conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MobileSamMLP(config, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Run the block: [B, h, w, C] to the same shape."""
        hidden_states = hidden_states + self.attend(hidden_states)
        hidden_states = _channels_last(self.local_conv(_channels_first(hidden_states)))
        mapped: Tensor = self.mlp(self.layer_norm2(hidden_states))
        return hidden_states + mapped

    def attend(self, hidden_states: Tensor) -> Tensor:
        """Return the output of the windowed attention, [B, h, w, C].

        Windows that exceed the grid are padded with zeros before the normalization. Padding is not masked: other
        positions attend to it, as in the published model.
        """
        _, height, width, _ = hidden_states.shape
        windows = partition_windows(hidden_states, self.window_size)
        attended, _ = self.attn(hidden_states=self.layer_norm1(windows))
        return merge_windows(attended, height, width)


def offset_indexes(window: int, device: torch.device | None = None) -> Tensor:
    """Return the column of `attention_biases` for each pair of positions of a window, int64 [w * w, w * w].

    A bias depends on the absolute vertical and horizontal offsets dy and dx; its column is dy * w + dx.

    Args:
        window: Side of the window, w.
        device: Device of the result.
    """
    position = torch.arange(window**2, device=device)
    rows, columns = position // window, position % window
    dy = (rows[:, None] - rows[None, :]).abs()
    dx = (columns[:, None] - columns[None, :]).abs()
    return dy * window + dx


def partition_windows(hidden_states: Tensor, window: int) -> Tensor:
    """Split a map into windows, padded with zeros at the right and the bottom.

    Args:
        hidden_states: [B, h, w, C].
        window: Side of a window.

    Returns:
        Windows [B * n, window, window, C], row by row.
    """
    batch, height, width, channels = hidden_states.shape
    padded = F.pad(hidden_states, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = padded.shape[1] // window, padded.shape[2] // window
    grid = padded.reshape(batch, rows, window, columns, window, channels)
    return grid.transpose(2, 3).reshape(-1, window, window, channels)


def merge_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Put the windows of `partition_windows` together again and crop the padding.

    Args:
        windows: [B * n, window, window, C].
        height: Rows of the map, h.
        width: Columns of the map, w.

    Returns:
        The map [B, h, w, C].
    """
    _, window, _, channels = windows.shape
    rows, columns = -(-height // window), -(-width // window)
    grid = windows.reshape(-1, rows, columns, window, window, channels)
    padded = grid.transpose(2, 3).reshape(-1, rows * window, columns * window, channels)
    return padded[:, :height, :width]


def _channels_first(hidden_states: Tensor) -> Tensor:
    return hidden_states.permute(0, 3, 1, 2)


def _channels_last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1)
