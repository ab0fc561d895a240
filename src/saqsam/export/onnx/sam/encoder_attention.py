"""Attention of the image encoder as ONNX nodes: windows, relative positions, and blocks that fit into a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import (
    Codes,
    affine,
    layer_input,
    linear,
    move,
    product,
    quantize,
    read,
    rounded,
    weighted_mean,
)
from saqsam.export.packed import ExportError, slot_module
from saqsam.export.windows import CACHED_BLOCK_LOGITS, Window, queries_per_block

RelativePositions = Literal["sum", "channels"]


@dataclass(frozen=True)
class EncoderOptions:
    """How the encoder's graph is shaped; none of it changes what is computed.

    Attributes:
        relative_positions: `sum` adds them to the logits. `channels` makes them part of the product of queries and
            keys, as channels that a key holds a one in at its row and column; only where that product is float.
        max_block_logits: Global attentions with more logits are computed in blocks of so many; None: never.
    """

    relative_positions: RelativePositions = "sum"
    max_block_logits: int | None = CACHED_BLOCK_LOGITS


def write_attention(
    graph: Graph,
    attention: Any,
    normal: Value,
    side: int,
    window: Window,
    options: EncoderOptions,
    where: str,
) -> Value:
    """Rows [h * w, C] to rows [h * w, C]."""
    heads = attention.num_attention_heads
    given = _partition(graph, layer_input(graph, attention.qkv, normal, f"{where}.qkv"), side, window)
    parts = [_part(graph, attention.qkv, given, index, f"{where}.qkv") for index in range(3)]
    shape = graph.ints(window.count, window.tokens, heads, -1)
    query, key, value = (graph.op("Reshape", part, shape) for part in parts)
    query = graph.op("Transpose", query, perm=[0, 2, 1, 3])  # [W, N, L, D]
    value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
    operands = _operands(graph, attention, query, key, value, window, options, where)
    queries = queries_per_block(heads, window, options.max_block_logits)
    if queries is None:
        mean = _mean(graph, attention, operands, (heads, window.tokens), window, where)
    else:
        mean = _mean_in_blocks(graph, attention, operands, queries, window, where)
    flat = graph.op(
        "Reshape",
        graph.op("Transpose", mean, perm=[0, 2, 1, 3]),
        graph.ints(window.count * window.tokens, -1),
    )
    given = layer_input(graph, attention.proj, flat, f"{where}.proj")
    return linear(graph, attention.proj, _unpartition(graph, given, side, window), f"{where}.proj")


@dataclass(frozen=True)
class _Operands:
    """What an attention's products read; `by_row` and `by_column` are empty where there is nothing to add to logits.

    Attributes:
        query: [W, N, L, D], scaled if it is float.
        key: [W, N, D, L].
        value: [W, N, L, D].
        by_row: [W, N, L, h], what a key's row adds.
        by_column: [W, N, L, w].
    """

    query: Value | Codes
    key: Value | Codes
    value: Value | Codes
    by_row: Value = ""
    by_column: Value = ""


def _operands(
    graph: Graph,
    attention: Any,
    query: Value,
    key: Value,
    value: Value,
    window: Window,
    options: EncoderOptions,
    where: str,
) -> _Operands:
    """Of queries [W, N, L, D], keys [W, L, N, D] and values [W, N, L, D], all float."""
    rounded_value = rounded(graph, value, slot_module(attention, "value_quantizer"), where)
    turned = [0, 2, 3, 1]
    quantizer = slot_module(attention, "query_quantizer")
    if not isinstance(quantizer, nn.Identity):
        codes = quantize(graph, query, affine(quantizer, where))
        keys = quantize(graph, key, affine(slot_module(attention, "key_quantizer"), where))
        keys = move(graph, keys, "Transpose", perm=turned)
        source = codes.read(graph) if attention.use_rel_pos and attention.quantized_rel_pos_query else query
        added = _relative_positions(graph, attention, source, window) if attention.use_rel_pos else ("", "")
        return _Operands(codes, keys, rounded_value, *added)
    scaled = graph.op("Mul", query, graph.scalar(float(attention.scale)))
    float_keys = graph.op("Transpose", key, perm=turned)
    if not attention.use_rel_pos:
        return _Operands(scaled, float_keys, rounded_value)
    by_row, by_column = _relative_positions(graph, attention, query, window)
    if options.relative_positions == "sum":
        return _Operands(scaled, float_keys, rounded_value, by_row, by_column)
    places = graph.constant(_one_hot(window)[None, None], "places")
    heads = graph.ints(window.count, attention.num_attention_heads, 1, 1)
    return _Operands(
        graph.op("Concat", scaled, by_row, by_column, axis=-1),
        graph.op("Concat", float_keys, graph.op("Expand", places, heads), axis=2),
        rounded_value,
    )


def _mean(
    graph: Graph, attention: Any, given: _Operands, size: tuple[int, int], window: Window, where: str
) -> Value:
    """What queries, `size` being the number of heads and of queries of each, make of the values: [W, *size, D]."""
    scale = float(attention.scale)
    query = given.query.read(graph, scale) if isinstance(given.query, Codes) else given.query
    logits = graph.op("MatMul", query, read(graph, given.key))
    if given.by_row:
        shape = (window.count, *size)
        logits = graph.op("Reshape", logits, graph.ints(*shape, *window.size))
        logits = graph.op("Add", logits, graph.op("Unsqueeze", given.by_row, graph.ints(-1)))
        logits = graph.op("Add", logits, graph.op("Unsqueeze", given.by_column, graph.ints(-2)))
        logits = graph.op("Reshape", logits, graph.ints(*shape, window.tokens))
    return weighted_mean(graph, attention, logits, read(graph, given.value), where)


def _mean_in_blocks(
    graph: Graph, attention: Any, given: _Operands, queries: int, window: Window, where: str
) -> Value:
    """`_mean` of one window head by head, some queries at a time: no tensor of all logits is ever in memory."""
    heads, count = attention.num_attention_heads, window.tokens // queries
    given_parts: dict[str, Value | Codes] = {name: value for name, value in vars(given).items() if value}
    by_head = {name: _split(graph, value, heads, 1) for name, value in given_parts.items()}
    means = []
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
            means.append(_mean(graph, attention, _Operands(**part), (1, queries), window, where))
    joined = [graph.op("Concat", *means[h * count : (h + 1) * count], axis=2) for h in range(heads)]
    return graph.op("Concat", *joined, axis=1)


def _split(graph: Graph, given: Value | Codes, count: int, axis: int) -> Sequence[Value | Codes]:
    """Return equal parts along an axis."""
    if count == 1:
        return [given]
    if isinstance(given, Codes):
        parts = graph.ops("Split", count, given.value, axis=axis, num_outputs=count)
        return [replace(given, value=part) for part in parts]
    return graph.ops("Split", count, given, axis=axis, num_outputs=count)


def _relative_positions(graph: Graph, attention: Any, query: Value, window: Window) -> tuple[Value, Value]:
    """What each query [W, N, L, D] adds to logits by a key's row [W, N, L, h], and by its column [W, N, L, w]."""
    (high, wide), heads = window.size, attention.num_attention_heads
    grid = graph.op("Reshape", query, graph.ints(window.count * heads, high, wide, -1))
    by_row = graph.op("MatMul", grid, _distances(graph, attention.rel_pos_h, high, "rel_pos_h"))
    turned = graph.op("Transpose", grid, perm=[0, 2, 1, 3])
    by_column = graph.op("MatMul", turned, _distances(graph, attention.rel_pos_w, wide, "rel_pos_w"))
    by_column = graph.op("Transpose", by_column, perm=[0, 2, 1, 3])
    shape = graph.ints(window.count, heads, window.tokens, -1)
    return graph.op("Reshape", by_row, shape), graph.op("Reshape", by_column, shape)


def _distances(graph: Graph, table: Tensor, size: int, name: str) -> Value:
    """From a learned vector for each distance [2 S - 1, D] to one for each query and key: [S, D, S].

    Stored is the table; runtimes compute the rest of it when they load.
    """
    if len(table) != 2 * size - 1:
        raise ExportError(f"{name}: expected {2 * size - 1} distances for {size} positions, got {len(table)}")
    places = np.arange(size)
    index = graph.constant(places[:, None] - places[None, :] + size - 1, "distances")
    found = graph.op("Gather", graph.parameter(table, name), index, axis=0)
    return graph.op("Transpose", found, perm=[0, 2, 1])


def _one_hot(window: Window) -> np.ndarray:
    """[h + w, L]: ones where a token's row and column are."""
    high, wide = window.size
    rows = np.repeat(np.eye(high, dtype=np.float32), wide, axis=1)
    columns = np.tile(np.eye(wide, dtype=np.float32), (1, high))
    return np.concatenate([rows, columns])


def _part(graph: Graph, layer: Any, given: Value | Codes, index: int, where: str) -> Value:
    """One third of a layer's outputs: queries, keys or values of the rows."""
    count = layer.out_features // 3
    part = slice(index * count, (index + 1) * count)
    bias = None if layer.bias is None else layer.bias[part]
    with graph.scope("qkv"[index]):
        return product(graph, given, layer.weight, bias, where, lambda weight: weight[part].T)


def _partition(graph: Graph, given: Value | Codes, side: int, window: Window) -> Value | Codes:
    """Rows [h * w, C] in the order of windows, padded with zeros: [W * L, C]."""
    if window.count == 1 and not any(window.pad):
        return given
    (high, wide), (down, right) = window.size, window.pad
    given = move(graph, given, "Reshape", graph.ints(side, side, -1))
    if down or right:
        zero = given.zero_point if isinstance(given, Codes) else graph.scalar(0.0)
        given = move(graph, given, "Pad", graph.ints(0, 0, 0, down, right, 0), zero)
    given = move(graph, given, "Reshape", graph.ints(window.rows, high, window.columns, wide, -1))
    given = move(graph, given, "Transpose", perm=[0, 2, 1, 3, 4])
    return move(graph, given, "Reshape", graph.ints(window.count * window.tokens, -1))


def _unpartition(graph: Graph, given: Value | Codes, side: int, window: Window) -> Value | Codes:
    """The way back: [W * L, C] to [h * w, C]."""
    if window.count == 1 and not any(window.pad):
        return given
    (high, wide), (down, right) = window.size, window.pad
    given = move(graph, given, "Reshape", graph.ints(window.rows, window.columns, high, wide, -1))
    given = move(graph, given, "Transpose", perm=[0, 2, 1, 3, 4])
    if down or right:
        given = move(graph, given, "Reshape", graph.ints(side + down, side + right, -1))
        given = move(graph, given, "Slice", graph.ints(0, 0), graph.ints(side, side), graph.ints(0, 1))
    return move(graph, given, "Reshape", graph.ints(side * side, -1))
