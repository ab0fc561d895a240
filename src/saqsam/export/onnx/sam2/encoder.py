"""The image encoder of SAM 2 as an ONNX graph: pixels to embedding and high-resolution features."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Sam2Model

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import layer_input, layer_norm, linear
from saqsam.export.onnx.sam.encoder import convolution, convolution_weight, to_map, write_mlp
from saqsam.export.onnx.sam.encoder_attention import (
    average,
    average_in_blocks,
    operands_of,
    partition,
    project_part,
    unpartition,
)
from saqsam.export.windows import CACHED_BLOCK_LOGITS, queries_per_block, window_of
from saqsam.models.sam2.resizing import bicubic_matrix
from saqsam.models.sam2.structure import BACKBONE, NECK, stage_starts


def write_encoder(graph: Graph, model: Sam2Model, images: int | str = 1) -> None:
    """Add the image encoder to an empty graph.

    Its input is `pixel_values` [B, 3, S, S]. Its outputs are `image_embeddings` [B, C, h, w], `high_res_features_0`
    [B, C / 8, 4h, 4w] and `high_res_features_1` [B, C / 4, 2h, 2w], all float32.

    Args:
        graph: Empty graph.
        model: The model.
        images: B, or its name if it is free.
    """
    config = model.config
    size, backbone = config.prompt_encoder_config.image_size, model.vision_encoder.backbone
    side = size // config.vision_config.backbone_config.patch_stride[0]
    pixels = graph.input("pixel_values", (images, 3, size, size))
    with graph.scope("patch_embed"):
        rows = _patches(graph, backbone, pixels, side)
    levels: list[tuple[Value, int]] = []
    starts = stage_starts(config)
    for index, block in enumerate(backbone.blocks):
        if index in starts[1:]:
            levels.append((rows, side))
        with graph.scope(f"blocks.{index}"):
            rows, side = _block(graph, block, rows, side, f"{BACKBONE}.blocks.{index}")
    levels.append((rows, side))
    with graph.scope("neck"):
        _neck(graph, model, levels, images)


def _patches(graph: Graph, backbone: Any, pixels: Value, side: int) -> Value:
    """Embed patches and add the absolute positions: rows [B * h * w, C]."""
    projection = backbone.patch_embed.projection
    weight = convolution_weight(graph, projection)
    down, right = projection.padding
    patches = graph.op(
        "Conv",
        pixels,
        weight,
        graph.parameter(projection.bias, "bias"),
        strides=list(projection.stride),
        pads=[down, right, down, right],
        kernel_shape=list(projection.weight.shape[2:]),
    )
    # The small tables are stored; runtimes compute the large one when they load the graph. Bicubic interpolation is a
    # matrix product along each axis: OpenVINO takes two minutes to fold the operator `Resize`.
    table = graph.parameter(backbone.pos_embed, "positions")
    window = graph.parameter(backbone.pos_embed_window, "window_positions")
    channels, repeats = backbone.pos_embed.shape[1], side // backbone.pos_embed_window.shape[-1]
    by_row, by_column = (bicubic_matrix(size, side) for size in backbone.pos_embed.shape[2:])
    tall = graph.op("MatMul", graph.parameter(by_row, "resize_rows"), table)
    large = graph.op("MatMul", tall, graph.parameter(by_column.T, "resize_columns"))
    positions = graph.op("Add", large, graph.op("Tile", window, graph.ints(1, 1, repeats, repeats)))
    placed = graph.op("Add", patches, positions)
    flat = graph.op("Reshape", placed, graph.ints(-1, channels, side * side))
    turned = graph.op("Transpose", flat, perm=[0, 2, 1])
    return graph.op("Reshape", turned, graph.ints(-1, channels))


def _block(graph: Graph, block: Any, rows: Value, side: int, where: str) -> tuple[Value, int]:
    """Apply a block to rows [B * h * w, C]; return rows [B * h' * w', C'] and the new side of the grid."""
    stride = block.query_stride[0] if block.query_stride else 1
    with graph.scope("attn"):
        normal = layer_norm(graph, block.layer_norm1, rows)
        if block.dim != block.dim_out:
            tensor = layer_input(graph, block.proj, normal, f"{where}.proj")
            with graph.scope("proj"):
                rows = linear(graph, block.proj, tensor, f"{where}.proj")
        if stride > 1:
            rows = _pool(graph, rows, side, block.dim_out, stride)
        attended = _attend(graph, block, normal, side, stride, f"{where}.attn")
        rows = graph.op("Add", rows, attended)
    with graph.scope("mlp"):
        mlp, name = block.mlp, f"{where}.mlp"
        layers = (mlp.proj_in, mlp.activation, mlp.proj_out)
        names = (f"{name}.proj_in", f"{name}.proj_out")
        return write_mlp(graph, layers, block.layer_norm2, rows, names), side // stride


def _attend(graph: Graph, block: Any, normal: Value, side: int, stride: int, where: str) -> Value:
    """Apply an encoder attention to normalized rows [B * h * w, C]: rows [B * h' * w', C']."""
    attention = block.attn
    heads, window = attention.num_attention_heads, window_of(block.window_size, side)
    tensor = layer_input(graph, attention.qkv, normal, f"{where}.qkv")
    tensor = partition(graph, tensor, (side, side, attention.qkv.in_features), window)
    parts = [project_part(graph, attention.qkv, tensor, index, f"{where}.qkv") for index in range(3)]
    if stride > 1:
        parts[0] = _pool(graph, parts[0], window.size[0], attention.dim_out, stride)
    tokens = [window.tokens // stride**2, window.tokens, window.tokens]
    query, key, value = (
        graph.op("Reshape", part, graph.ints(-1, count, heads, attention.dim_out // heads))
        for part, count in zip(parts, tokens, strict=True)
    )
    query = graph.op("Transpose", query, perm=[0, 2, 1, 3])  # [W, N, L, D]
    value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
    operands = operands_of(graph, attention, query, key, value, where)
    queries = queries_per_block(heads, window, CACHED_BLOCK_LOGITS) if stride == 1 else None
    if queries is None:
        averaged = average(graph, attention, operands, (heads, tokens[0]), window, where)
    else:
        averaged = average_in_blocks(graph, attention, operands, queries, window, where)
    turned = graph.op("Transpose", averaged, perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", turned, graph.ints(-1, attention.dim_out))
    tensor = layer_input(graph, attention.proj, flat, f"{where}.proj")
    grid = (side // stride, side // stride, attention.dim_out)
    tensor = unpartition(graph, tensor, grid, window.pooled(stride))
    return linear(graph, attention.proj, tensor, f"{where}.proj")


def _pool(graph: Graph, rows: Value, side: int, channels: int, stride: int) -> Value:
    """Max-pool the rows of square grids, [N * side * side, C]: [N * (side / stride)**2, C].

    `Max` of slices takes a tenth of the time of `ReduceMax` in OpenVINO, which has no fast kernel for these axes.
    """
    for length in (side * channels, channels):  # neighbors below each other, then beside each other
        groups = graph.op("Reshape", rows, graph.ints(-1, stride, length))
        rows = graph.op("Max", *graph.split(groups, stride, axis=1))
    return graph.op("Reshape", rows, graph.ints(-1, channels))


def _neck(graph: Graph, model: Sam2Model, levels: list[tuple[Value, int]], images: int | str) -> None:
    """Apply the feature pyramid to rows of the four stages, the finest first, and declare the outputs."""
    convs, decoder = model.vision_encoder.neck.convs, model.mask_decoder
    finest, fine, middle, coarse = levels
    top = convolution(graph, convs[0], *coarse, f"{NECK}.convs.0")
    side = coarse[1]
    channels = convs[0].weight.shape[0]
    grid = graph.op("Reshape", top, graph.ints(-1, side, 1, side, 1, channels))
    grid = graph.op("Expand", grid, graph.ints(1, 1, 2, 1, 2, 1))
    upsampled = graph.op("Reshape", grid, graph.ints(-1, channels))
    embedding = graph.op("Add", convolution(graph, convs[1], *middle, f"{NECK}.convs.1"), upsampled)
    no_memory = graph.parameter(model.no_memory_embedding.reshape(1, -1), "no_memory_embedding")
    write_map(graph, graph.op("Add", embedding, no_memory), middle[1], (images, channels), "image_embeddings")
    for index, (level, reader) in enumerate(((finest, decoder.conv_s0), (fine, decoder.conv_s1))):
        conv, name = convs[3 - index], f"{NECK}.convs.{3 - index}"
        rows, channels = convolution(graph, conv, *level, name), conv.weight.shape[0]
        if not isinstance(reader, nn.Identity):
            where = f"mask_decoder.conv_s{index}"
            rows, channels = convolution(graph, reader, rows, level[1], where), reader.weight.shape[0]
        write_map(graph, rows, level[1], (images, channels), f"high_res_features_{index}")


def write_map(graph: Graph, rows: Value, side: int, size: tuple[int | str, int], name: str) -> None:
    """Declare rows [B * h * w, C] as an output [B, C, h, w]; `size` is B and C."""
    images, channels = size
    graph.output(to_map(graph, rows, side, channels), name, (images, channels, side, side))
