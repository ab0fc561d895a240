"""The image encoder of SAM v1 as an ONNX graph: pixels to embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import SamModel

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import (
    Codes,
    activation,
    gemm,
    layer_input,
    layer_norm,
    linear,
    quantized,
    rearrange,
)
from saqsam.export.onnx.sam.encoder_attention import EncoderOptions, write_attention
from saqsam.export.packed import slot_module
from saqsam.export.windows import window_of
from saqsam.quant.layers import PackedTensor


def write_encoder(graph: Graph, model: SamModel, options: EncoderOptions) -> tuple[list[Value], Value]:
    """Add the image encoder to an empty graph.

    Its input is `pixel_values` [B, 3, S, S], its output `image_embeddings` [B, C, h, w], both float32.

    Returns:
        Rows [B * h * w, C'] after each block, and the image embedding.
    """
    config, encoder = model.config.vision_config, model.vision_encoder
    side = config.image_size // config.patch_size
    images, size = options.images, config.image_size
    pixels = graph.input("pixel_values", (images, config.num_channels, size, size))
    with graph.scope("patch_embed"):
        rows = _patches(graph, encoder, pixels, side)
    blocks = []
    for index, layer in enumerate(encoder.layers):
        with graph.scope(f"layers.{index}"):
            rows = _block(graph, layer, rows, side, options, f"vision_encoder.layers.{index}")
        blocks.append(rows)
    with graph.scope("neck"):
        embedding = write_neck(graph, encoder.neck, rows, side)
    graph.output(embedding, "image_embeddings", (images, config.output_channels, side, side))
    return blocks, embedding


def _patches(graph: Graph, encoder: Any, pixels: Value, side: int) -> Value:
    """Embed patches and add the absolute positions: rows [B * h * w, C]."""
    projection = encoder.patch_embed.projection
    weight = convolution_weight(graph, projection)
    bias = () if projection.bias is None else (graph.parameter(projection.bias, "bias"),)
    size = encoder.patch_embed.patch_size
    patches = graph.op("Conv", pixels, weight, *bias, strides=list(size), kernel_shape=list(size))
    channels = projection.weight.shape[0]
    flat = graph.op("Reshape", patches, graph.ints(-1, channels, side * side))
    rows = graph.op("Transpose", flat, perm=[0, 2, 1])
    packed = encoder._modules.get("packed_pos_embed")
    if isinstance(packed, PackedTensor):
        positions = graph.op(
            "Reshape", packed_weight(graph, packed), graph.ints(side * side, channels), name="positions"
        )
    elif encoder.pos_embed is not None:
        positions = graph.parameter(encoder.pos_embed.reshape(side * side, channels), "positions")
    else:
        positions = ""
    placed = graph.op("Add", rows, positions) if positions else rows
    return graph.op("Reshape", placed, graph.ints(-1, channels))


def convolution_weight(graph: Graph, layer: Any) -> Value:
    """Add the weight of a convolution with float inputs, dequantized in the graph if it is packed."""
    if isinstance(layer.weight, PackedTensor):
        return packed_weight(graph, layer.weight)
    return graph.parameter(layer.weight, "weight")


def write_mlp(
    graph: Graph, layers: tuple[Any, nn.Module, Any], norm: Any, rows: Value, where: tuple[str, str]
) -> Value:
    """Apply the MLP of an encoder block, with normalization and residual, to rows [B * h * w, C].

    Args:
        graph: The graph.
        layers: First layer, activation and second layer.
        norm: The normalization before it.
        rows: Rows of the residual stream.
        where: Module names of the two layers, for errors.
    """
    first, function, second = layers
    normal = layer_norm(graph, norm, rows)
    hidden = linear(graph, first, layer_input(graph, first, normal, where[0]), where[0])
    hidden = activation(graph, function, hidden)
    out = linear(graph, second, layer_input(graph, second, hidden, where[1]), where[1])
    return graph.op("Add", rows, out)


def packed_weight(graph: Graph, packed: PackedTensor) -> Value:
    """Add a packed tensor as codes that are dequantized to float32 in the graph."""
    codes = graph.unsigned_bytes(packed.unpack().cpu().numpy(), packed.bits, name="codes")
    scale = graph.constant(packed.scale.cpu().numpy(), "weight_scale")
    zero_point = graph.constant(packed.zero_point.cpu().numpy().astype(np.uint8), "weight_zero_point")
    return graph.op("DequantizeLinear", codes, scale, zero_point, axis=packed.axis)


def _block(graph: Graph, layer: Any, rows: Value, side: int, options: EncoderOptions, where: str) -> Value:
    with graph.scope("attn"):
        window = window_of(layer.window_size, side)
        normal = layer_norm(graph, layer.layer_norm1, rows)
        attended = write_attention(graph, layer.attn, normal, side, window, options, f"{where}.attn")
        rows = graph.op("Add", rows, attended)
    with graph.scope("mlp"):
        mlp, name = layer.mlp, f"{where}.mlp"
        layers = (mlp.lin1, mlp.act, mlp.lin2)
        names = (f"{name}.lin1", f"{name}.lin2")
        return write_mlp(graph, layers, layer.layer_norm2, rows, names)


def write_neck(graph: Graph, neck: Any, rows: Value, side: int) -> Value:
    """Apply the neck to rows [B * h * w, C]: embedding [B, C', h, w]."""
    hidden = convolution(graph, neck.conv1, rows, side, "neck.conv1")
    hidden = layer_norm(graph, neck.layer_norm1, hidden)
    hidden = convolution(graph, neck.conv2, hidden, side, "neck.conv2")
    hidden = layer_norm(graph, neck.layer_norm2, hidden)
    return to_map(graph, hidden, side, neck.conv2.weight.shape[0])


def to_map(graph: Graph, rows: Value, side: int, channels: int) -> Value:
    """Turn rows [B * h * w, C] into maps [B, C, h, w]."""
    by_image = graph.op("Reshape", rows, graph.ints(-1, side * side, channels))
    turned = graph.op("Transpose", by_image, perm=[0, 2, 1])
    return graph.op("Reshape", turned, graph.ints(-1, channels, side, side))


def convolution(graph: Graph, layer: Any, rows: Value, side: int, where: str) -> Value:
    """Apply a size-preserving convolution to rows [B * h * w, K] as one matrix product: rows [B * h * w, C].

    The values under the kernel are gathered (im2col), in 8 bits if they are quantized: integer kernels for matrix
    products are faster than those for convolutions, and do not quantize their output.
    """
    channels, inputs, high, wide = layer.weight.shape
    tensor = quantized(graph, rows, slot_module(layer, "input_quantizer"), where)
    if (high, wide) != (1, 1):
        tensor = _gather_neighbors(graph, tensor, (side, side, inputs), high, wide)

    def arrange(weight: NDArray[Any]) -> NDArray[Any]:
        return weight.transpose(2, 3, 1, 0).reshape(-1, channels)

    return gemm(graph, tensor, layer.weight, layer.bias, where, arrange)


def _gather_neighbors(
    graph: Graph, tensor: Value | Codes, grid_shape: tuple[int, int, int], high: int, wide: int
) -> Value | Codes:
    """Concatenate each row with its neighbors (im2col), with zero padding.

    Args:
        graph: The graph.
        tensor: Rows [B * h * w, K].
        grid_shape: h, w and K.
        high: Height of the kernel.
        wide: Width of the kernel.

    Returns:
        Rows [B * h * w, high * wide * K].
    """
    zero: Any = tensor.zero_point if isinstance(tensor, Codes) else graph.scalar(0.0)
    rows, columns, channels = grid_shape
    grid = rearrange(graph, tensor, "Reshape", graph.ints(-1, *grid_shape))
    up, left = high // 2, wide // 2
    grid = rearrange(graph, grid, "Pad", graph.ints(0, up, left, 0, 0, up, left, 0), zero)
    moved = [
        rearrange(graph, grid, "Slice", graph.ints(y, x), graph.ints(y + rows, x + columns), graph.ints(1, 2))
        for y in range(high)
        for x in range(wide)
    ]
    names = [m.value if isinstance(m, Codes) else m for m in moved]
    joined = graph.op("Concat", *names, axis=-1)
    flat = graph.op("Reshape", joined, graph.ints(-1, high * wide * channels))
    return replace(grid, value=flat) if isinstance(grid, Codes) else flat
