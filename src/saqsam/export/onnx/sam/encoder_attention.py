"""Attention of SAM v1's image encoder as ONNX nodes: windows, relative positions, and cache-sized blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import (
    Codes,
    affine_quantizer,
    dequantized,
    gemm,
    layer_input,
    linear,
    quantize,
    quantized,
    rearrange,
    weighted_average,
)
from saqsam.export.packed import ExportError, slot_module
from saqsam.export.windows import CACHED_BLOCK_LOGITS, Window, queries_per_block

RelativePositions = Literal["sum", "channels"]


@dataclass(frozen=True)
class EncoderOptions:
    """Options for the layout of the encoder's graph, which do not change its outputs.

    Attributes:
        relative_positions: `sum` adds relative positions to the logits. `channels` appends them to the queries, and
            one-hot rows and columns to the keys, so that one product computes both; only for float products.
        max_block_logits: Global attentions with more logits per image are computed in blocks of at most this many; None
            computes them at once.
        images: Images per call; a name for a number that is free.
    """

    relative_positions: RelativePositions = "sum"
    max_block_logits: int | None = CACHED_BLOCK_LOGITS
    images: int | str = 1


def write_attention(
    graph: Graph,
    attention: Any,
    normal: Value,
    side: int,
    window: Window,
    options: EncoderOptions,
    where: str,
) -> Value:
    """Apply an encoder attention to normalized rows [B * h * w, C]: rows [B * h * w, C].

    Args:
        graph: The graph.
        attention: The attention.
        normal: Rows [B * h * w, C].
        side: Side of the token grid.
        window: Window layout.
        options: Layout options of the graph.
        where: Module name, for errors.
    """
    heads, channels = attention.num_attention_heads, attention.qkv.out_features // 3
    tensor = layer_input(graph, attention.qkv, normal, f"{where}.qkv")
    tensor = partition(graph, tensor, (side, side, attention.qkv.in_features), window)
    parts = [project_part(graph, attention.qkv, tensor, index, f"{where}.qkv") for index in range(3)]
    shape = graph.ints(-1, window.tokens, heads, channels // heads)
    query, key, value = (graph.op("Reshape", part, shape) for part in parts)
    query = graph.op("Transpose", query, perm=[0, 2, 1, 3])  # [W, N, L, D]
    value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
    operands = _placed_operands(graph, attention, query, key, value, window, options, where)
    queries = queries_per_block(heads, window, options.max_block_logits)
    if queries is None:
        averaged = average(graph, attention, operands, (heads, window.tokens), window, where)
    else:
        averaged = average_in_blocks(graph, attention, operands, queries, window, where)
    flat = graph.op(
        "Reshape",
        graph.op("Transpose", averaged, perm=[0, 2, 1, 3]),
        graph.ints(-1, channels),
    )
    tensor = layer_input(graph, attention.proj, flat, f"{where}.proj")
    tensor = unpartition(graph, tensor, (side, side, channels), window)
    return linear(graph, attention.proj, tensor, f"{where}.proj")


@dataclass(frozen=True)
class Operands:
    """Operands of an attention with W windows of all images, N heads and L tokens per window.

    Attributes:
        query: [W, N, L, D], scaled if it is float.
        key: [W, N, D, L].
        value: [W, N, L, D].
        by_row: Relative positions to add to logits by the key's row, [W, N, L, h]; empty if there are none.
        by_column: Relative positions to add to logits by the key's column, [W, N, L, w]; empty if there are none.
    """

    query: Value | Codes
    key: Value | Codes
    value: Value | Codes
    by_row: Value = ""
    by_column: Value = ""


def operands_of(graph: Graph, attention: Any, query: Value, key: Value, value: Value, where: str) -> Operands:
    """Quantize float queries [W, N, Q, D], keys [W, L, N, D] and values [W, N, L, D] without relative positions."""
    rounded_value = quantized(graph, value, slot_module(attention, "value_quantizer"), where)
    turned = [0, 2, 3, 1]
    quantizer = slot_module(attention, "query_quantizer")
    if isinstance(quantizer, nn.Identity):
        scaled = graph.op("Mul", query, graph.scalar(float(attention.scale)))
        return Operands(scaled, graph.op("Transpose", key, perm=turned), rounded_value)
    codes = quantize(graph, query, affine_quantizer(quantizer, where))
    keys = quantize(graph, key, affine_quantizer(slot_module(attention, "key_quantizer"), where))
    return Operands(codes, rearrange(graph, keys, "Transpose", perm=turned), rounded_value)


def _placed_operands(
    graph: Graph,
    attention: Any,
    query: Value,
    key: Value,
    value: Value,
    window: Window,
    options: EncoderOptions,
    where: str,
) -> Operands:
    """Quantize float queries [W, N, L, D], keys [W, L, N, D] and values [W, N, L, D], and add relative positions."""
    operands = operands_of(graph, attention, query, key, value, where)
    if not attention.use_rel_pos:
        return operands
    is_float = isinstance(operands.query, Value)
    source = query
    if isinstance(operands.query, Codes) and attention.quantized_rel_pos_query:
        source = operands.query.dequantize(graph)
    by_row, by_column = _relative_positions(graph, attention, source, window)
    if not is_float or options.relative_positions == "sum":
        return replace(operands, by_row=by_row, by_column=by_column)
    assert isinstance(operands.query, Value)
    assert isinstance(operands.key, Value)
    places = graph.constant(_one_hot(window)[None, None], "places")
    windows = graph.op("Slice", graph.op("Shape", operands.key), graph.ints(0), graph.ints(1))
    target = graph.op("Concat", windows, graph.ints(attention.num_attention_heads, 1, 1), axis=0)
    return Operands(
        graph.op("Concat", operands.query, by_row, by_column, axis=-1),
        graph.op("Concat", operands.key, graph.op("Expand", places, target), axis=2),
        operands.value,
    )


def average(
    graph: Graph, attention: Any, operands: Operands, size: tuple[int, int], window: Window, where: str
) -> Value:
    """Average the values for all queries: [W, *size, D], where `size` is the number of heads and of queries."""
    scale = float(attention.scale)
    query = operands.query.dequantize(graph, scale) if isinstance(operands.query, Codes) else operands.query
    logits = graph.op("MatMul", query, dequantized(graph, operands.key))
    if operands.by_row:
        shape = (-1, *size)
        logits = graph.op("Reshape", logits, graph.ints(*shape, *window.size))
        logits = graph.op("Add", logits, graph.op("Unsqueeze", operands.by_row, graph.ints(-1)))
        logits = graph.op("Add", logits, graph.op("Unsqueeze", operands.by_column, graph.ints(-2)))
        logits = graph.op("Reshape", logits, graph.ints(*shape, window.tokens))
    return weighted_average(graph, attention, logits, dequantized(graph, operands.value), where)


def average_in_blocks(
    graph: Graph, attention: Any, operands: Operands, queries: int, window: Window, where: str
) -> Value:
    """Run `average` on whole images head by head, `queries` at a time, so that all logits are never in memory."""
    heads, count = attention.num_attention_heads, window.tokens // queries
    present: dict[str, Value | Codes] = {name: value for name, value in vars(operands).items() if value}
    by_head = {name: _split(graph, value, heads, 1) for name, value in present.items()}
    averages = []
    for head in range(heads):
        own = {name: parts[head] for name, parts in by_head.items()}
        slabs = {
            name: _split(graph, own[name], count, 2)
            for name in ("query", "by_row", "by_column")
            if name in own
        }
        for index in range(count):
            part: dict[str, Any] = dict(own)
            part.update((name, parts[index]) for name, parts in slabs.items())
            averages.append(average(graph, attention, Operands(**part), (1, queries), window, where))
    joined = [graph.op("Concat", *averages[h * count : (h + 1) * count], axis=2) for h in range(heads)]
    return graph.op("Concat", *joined, axis=1)


def _split(graph: Graph, tensor: Value | Codes, count: int, axis: int) -> Sequence[Value | Codes]:
    """Split a tensor into equal parts along an axis."""
    if count == 1:
        return [tensor]
    if isinstance(tensor, Codes):
        return [replace(tensor, value=part) for part in graph.split(tensor.value, count, axis)]
    return graph.split(tensor, count, axis)


def _relative_positions(graph: Graph, attention: Any, query: Value, window: Window) -> tuple[Value, Value]:
    """Return the relative positions of queries [W, N, L, D] by key row [W, N, L, h] and by key column [W, N, L, w]."""
    (high, wide), heads = window.size, attention.num_attention_heads
    depth = attention.qkv.out_features // 3 // heads
    grid = graph.op("Reshape", query, graph.ints(-1, high, wide, depth))
    by_row = graph.op("MatMul", grid, _distance_table(graph, attention.rel_pos_h, high, "rel_pos_h"))
    turned = graph.op("Transpose", grid, perm=[0, 2, 1, 3])
    by_column = graph.op("MatMul", turned, _distance_table(graph, attention.rel_pos_w, wide, "rel_pos_w"))
    by_column = graph.op("Transpose", by_column, perm=[0, 2, 1, 3])
    shape = (-1, heads, window.tokens)
    return (
        graph.op("Reshape", by_row, graph.ints(*shape, high)),
        graph.op("Reshape", by_column, graph.ints(*shape, wide)),
    )


def _distance_table(graph: Graph, table: Tensor, size: int, name: str) -> Value:
    """Expand a table of learned vectors by distance [2 S - 1, D] to all pairs of queries and keys: [S, D, S].

    The graph stores the table; runtimes fold the expansion when they load the graph.
    """
    if len(table) != 2 * size - 1:
        raise ExportError(f"{name}: expected {2 * size - 1} distances for {size} positions, got {len(table)}")
    places = np.arange(size)
    index = graph.constant(places[:, None] - places[None, :] + size - 1, "distances")
    vectors = graph.op("Gather", graph.parameter(table, name), index, axis=0)
    return graph.op("Transpose", vectors, perm=[0, 2, 1])


def _one_hot(window: Window) -> np.ndarray:
    """Return the one-hot encodings of the row and the column of each token, [h + w, L]."""
    high, wide = window.size
    rows = np.repeat(np.eye(high, dtype=np.float32), wide, axis=1)
    columns = np.tile(np.eye(wide, dtype=np.float32), (1, high))
    return np.concatenate([rows, columns])


def project_part(graph: Graph, layer: Any, tensor: Value | Codes, index: int, where: str) -> Value:
    """Project rows to queries (index 0), keys (1) or values (2): one third of the layer's outputs."""
    count = layer.out_features // 3
    part = slice(index * count, (index + 1) * count)
    bias = None if layer.bias is None else layer.bias[part]
    with graph.scope("qkv"[index]):
        return gemm(graph, tensor, layer.weight, bias, where, lambda weight: weight[part].T)


def partition(
    graph: Graph, tensor: Value | Codes, grid: tuple[int, int, int], window: Window
) -> Value | Codes:
    """Sort rows [B * h * w, C] of grids [h, w, C] by window, with zero padding: [W * L, C]."""
    if window.count == 1 and not any(window.pad):
        return tensor
    (high, wide), (down, right) = window.size, window.pad
    *_, channels = grid
    tensor = rearrange(graph, tensor, "Reshape", graph.ints(-1, *grid))
    if down or right:
        zero = tensor.zero_point if isinstance(tensor, Codes) else graph.scalar(0.0)
        tensor = rearrange(graph, tensor, "Pad", graph.ints(0, 0, 0, 0, 0, down, right, 0), zero)
    cut = graph.ints(-1, window.rows, high, window.columns, wide, channels)
    tensor = rearrange(graph, tensor, "Reshape", cut)
    tensor = rearrange(graph, tensor, "Transpose", perm=[0, 1, 3, 2, 4, 5])
    return rearrange(graph, tensor, "Reshape", graph.ints(-1, channels))


def unpartition(
    graph: Graph, tensor: Value | Codes, grid: tuple[int, int, int], window: Window
) -> Value | Codes:
    """Undo `partition`: [W * L, C] to [B * h * w, C]."""
    if window.count == 1 and not any(window.pad):
        return tensor
    (high, wide), (down, right) = window.size, window.pad
    rows, columns, channels = grid
    cut = graph.ints(-1, window.rows, window.columns, high, wide, channels)
    tensor = rearrange(graph, tensor, "Reshape", cut)
    tensor = rearrange(graph, tensor, "Transpose", perm=[0, 1, 3, 2, 4, 5])
    if down or right:
        tensor = rearrange(graph, tensor, "Reshape", graph.ints(-1, rows + down, columns + right, channels))
        end, axes = graph.ints(rows, columns), graph.ints(1, 2)
        tensor = rearrange(graph, tensor, "Slice", graph.ints(0, 0), end, axes)
    return rearrange(graph, tensor, "Reshape", graph.ints(-1, channels))
