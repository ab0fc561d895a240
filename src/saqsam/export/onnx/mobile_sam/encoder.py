"""The image encoder of MobileSAM as an ONNX graph: pixels to embedding.

Pointwise convolutions and linear layers are matrix products on rows [B * h * w, C]. Depthwise convolutions stay float
convolutions, on maps [B, C, h, w].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import (
    Codes,
    activation,
    dequantized,
    layer_input,
    layer_norm,
    linear,
    rearrange,
    weighted_average,
)
from saqsam.export.onnx.sam.encoder import convolution, convolution_weight, write_mlp, write_neck
from saqsam.export.onnx.sam.encoder_attention import operands_of, partition, project_part, unpartition
from saqsam.export.windows import Window, window_of
from saqsam.models.mobile_sam.model import MobileSamModel, block_names
from saqsam.models.mobile_sam.tiny_vit import MobileSamMBConv, MobileSamPatchMerging

_ENCODER = "vision_encoder."


def write_encoder(graph: Graph, model: MobileSamModel, images: int | str = 1) -> None:
    """Add the image encoder to an empty graph.

    Its input is `pixel_values` [B, 3, S, S], its output `image_embeddings` [B, C, h, w], both float32.

    Args:
        graph: Empty graph.
        model: The model.
        images: B, or its name if it is free.
    """
    config, encoder = model.config.vision_config, model.vision_encoder
    size = config.image_size
    pixels = graph.input("pixel_values", (images, config.num_channels, size, size))
    with graph.scope("patch_embed"):
        embedding = encoder.patch_embed
        features = activation(graph, embedding.act, _spatial(graph, embedding.conv1, pixels))
        rows = _to_rows(graph, _spatial(graph, embedding.conv2, features), embedding.conv2.weight.shape[0])
    side = config.grids[0]
    for where in (name for stage in block_names(config) for name in stage):
        block = model.get_submodule(where)
        with graph.scope(where.removeprefix(_ENCODER)):
            if isinstance(block, MobileSamMBConv):
                rows = _bottleneck(graph, block, rows, side, where)
            elif isinstance(block, MobileSamPatchMerging):
                rows, side = _separable(graph, block, rows, side, where)
            else:
                rows = _block(graph, block, rows, side, where)
    with graph.scope("neck"):
        image = write_neck(graph, encoder.neck, rows, side)
    graph.output(image, "image_embeddings", (images, config.output_channels, side, side))


def _bottleneck(graph: Graph, block: Any, rows: Value, side: int, where: str) -> Value:
    """Apply an inverted bottleneck with its residual connection to rows [B * h * w, C]."""
    features, _ = _separable(graph, block, rows, side, where)
    return activation(graph, block.act, graph.op("Add", rows, features))


def _separable(graph: Graph, block: Any, rows: Value, side: int, where: str) -> tuple[Value, int]:
    """Apply the convolutions of an inverted bottleneck or a patch merging to rows [B * h * w, C].

    Returns:
        Rows [B * h' * w', C'] and the new side of the grid.
    """
    hidden = convolution(graph, block.pointwise_conv1, rows, side, f"{where}.pointwise_conv1")
    hidden = activation(graph, block.act, hidden)
    hidden, side = _depthwise(graph, block.depthwise_conv, hidden, side)
    hidden = activation(graph, block.act, hidden)
    return convolution(graph, block.pointwise_conv2, hidden, side, f"{where}.pointwise_conv2"), side


def _block(graph: Graph, block: Any, rows: Value, side: int, where: str) -> Value:
    """Apply a TinyViT block to rows [B * h * w, C]."""
    with graph.scope("attn"):
        attended = _attend(graph, block, rows, side, f"{where}.attn")
        rows = graph.op("Add", rows, attended)
    with graph.scope("local_conv"):
        rows, _ = _depthwise(graph, block.local_conv, rows, side)
    with graph.scope("mlp"):
        mlp, name = block.mlp, f"{where}.mlp"
        layers = (mlp.lin1, mlp.act, mlp.lin2)
        names = (f"{name}.lin1", f"{name}.lin2")
        return write_mlp(graph, layers, block.layer_norm2, rows, names)


def _attend(graph: Graph, block: Any, rows: Value, side: int, where: str) -> Value:
    """Normalize rows [B * h * w, C] and attend within windows: rows [B * h * w, C]."""
    attention = block.attn
    heads, window = attention.num_attention_heads, window_of(block.window_size, side)
    channels = attention.qkv.in_features
    normal = layer_norm(graph, block.layer_norm1, rows)
    tensor = layer_input(graph, attention.qkv, normal, f"{where}.qkv")
    padded = side + window.pad[0]
    if padded > side:
        # Windows are padded before the normalization, which turns zeros into its bias.
        bias = graph.parameter(block.layer_norm1.bias, "padding")
        padding = layer_input(graph, attention.qkv, bias, f"{where}.qkv")
        tensor = _pad(graph, tensor, padding, (side, padded, channels))
    tensor = partition(graph, tensor, (padded, padded, channels), replace(window, pad=(0, 0)))
    parts = [project_part(graph, attention.qkv, tensor, index, f"{where}.qkv") for index in range(3)]
    shape = graph.ints(-1, window.tokens, heads, channels // heads)
    query, key, value = (graph.op("Reshape", part, shape) for part in parts)
    query = graph.op("Transpose", query, perm=[0, 2, 1, 3])  # [W, N, L, D]
    value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
    averaged = _average(graph, attention, query, key, value, window, where)
    turned = graph.op("Transpose", averaged, perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", turned, graph.ints(-1, channels))
    tensor = layer_input(graph, attention.proj, flat, f"{where}.proj")
    tensor = unpartition(graph, tensor, (side, side, channels), window)
    return linear(graph, attention.proj, tensor, f"{where}.proj")


def _average(
    graph: Graph, attention: Any, query: Value, key: Value, value: Value, window: Window, where: str
) -> Value:
    """Average values [W, N, L, D] for float queries [W, N, L, D] and keys [W, L, N, D]: [W, N, L, D]."""
    operands, scale = operands_of(graph, attention, query, key, value, where), float(attention.scale)
    scaled = operands.query.dequantize(graph, scale) if isinstance(operands.query, Codes) else operands.query
    logits = graph.op("MatMul", scaled, dequantized(graph, operands.key))
    logits = graph.op("Add", logits, _position_bias(graph, attention, window))
    return weighted_average(graph, attention, logits, dequantized(graph, operands.value), where)


def _position_bias(graph: Graph, attention: Any, window: Window) -> Value:
    """Return the bias of each pair of positions, [N, L, L].

    The graph stores a bias for each offset; runtimes compute the others when they load the graph.
    """
    size, heads = window.size[0], attention.num_attention_heads
    table = graph.parameter(attention.attention_biases.reshape(heads, size, size), "attention_biases")
    distances = graph.constant(
        [[abs(one - other) for other in range(size)] for one in range(size)], "distances"
    )
    by_row = graph.op("Gather", table, distances, axis=1)  # [N, y, y', |dx|]
    both = graph.op("Gather", by_row, distances, axis=3)  # [N, y, y', x, x']
    turned = graph.op("Transpose", both, perm=[0, 1, 3, 2, 4])
    return graph.op("Reshape", turned, graph.ints(heads, window.tokens, window.tokens))


def _pad(
    graph: Graph, tensor: Value | Codes, padding: Value | Codes, sides: tuple[int, int, int]
) -> Value | Codes:
    """Extend the grids of rows at the right and the bottom by copies of one row.

    Args:
        graph: The graph.
        tensor: Rows [B * side * side, C].
        padding: Row [C].
        sides: Side of a grid, its side with padding, and C.

    Returns:
        Rows [B * padded * padded, C].
    """
    side, padded, channels = sides
    grid = rearrange(graph, tensor, "Reshape", graph.ints(-1, side, side, channels))
    images = graph.op("Slice", graph.op("Shape", _name(grid)), graph.ints(0), graph.ints(1))
    for axis, size in ((2, (side, padded - side)), (1, (padded - side, padded))):
        shape = graph.op("Concat", images, graph.ints(*size, channels), axis=0)
        copies = rearrange(graph, padding, "Expand", shape)
        grid = rearrange(graph, grid, "Concat", _name(copies), axis=axis)
    return rearrange(graph, grid, "Reshape", graph.ints(-1, channels))


def _name(tensor: Value | Codes) -> Value:
    return tensor.value if isinstance(tensor, Codes) else tensor


def _depthwise(graph: Graph, layer: nn.Conv2d, rows: Value, side: int) -> tuple[Value, int]:
    """Apply a depthwise convolution to rows [B * h * w, C]; return rows [B * h' * w', C] and the new side."""
    channels, stride = layer.out_channels, layer.stride[0]
    grid = graph.op("Reshape", rows, graph.ints(-1, side, side, channels))
    image = graph.op("Transpose", grid, perm=[0, 3, 1, 2])
    return _to_rows(graph, _spatial(graph, layer, image), channels), -(-side // stride)


def _spatial(graph: Graph, layer: Any, image: Value) -> Value:
    """Apply a convolution with float inputs to a map [B, K, h, w]: [B, C, h', w']."""
    weight = convolution_weight(graph, layer)
    return graph.op(
        "Conv",
        image,
        weight,
        graph.parameter(layer.bias, "bias"),
        strides=list(layer.stride),
        pads=2 * list(layer.padding),
        kernel_shape=list(layer.weight.shape[2:]),
        group=getattr(layer, "groups", 1),
    )


def _to_rows(graph: Graph, image: Value, channels: int) -> Value:
    """Turn a map [B, C, h, w] into rows [B * h * w, C]."""
    turned = graph.op("Transpose", image, perm=[0, 2, 3, 1])
    return graph.op("Reshape", turned, graph.ints(-1, channels))
