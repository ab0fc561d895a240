"""Encoder attention of SAM 3's tracker as ONNX nodes: windows, rotations, and cache-sized blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import Codes, layer_input, linear
from saqsam.export.onnx.sam.encoder_attention import (
    average,
    average_in_blocks,
    operands_of,
    partition,
    unpartition,
)
from saqsam.export.packed import slot_module
from saqsam.export.windows import CACHED_BLOCK_LOGITS, Window, queries_per_block
from saqsam.models.structure import SLOTS


def write_attention(graph: Graph, block: Any, normal: Value, side: int, window: Window, where: str) -> Value:
    """Apply the attention of a block to normalized rows [B * h * w, C]: rows [B * h * w, C].

    Args:
        graph: The graph.
        block: Block of the encoder.
        normal: Rows [B * h * w, C].
        side: Side of the token grid.
        window: Window layout.
        where: Module name of the attention, for errors.
    """
    attention = block.attention
    heads, channels = attention.num_attention_heads, attention.hidden_size
    grid, shape = (side, side, channels), graph.ints(-1, window.tokens, heads, channels // heads)
    windows: dict[
        Value | Codes, Value | Codes
    ] = {}  # one for all three layers if their inputs have one quantizer
    parts = []
    for name in ("q_proj", "k_proj", "v_proj"):
        layer, place = getattr(attention, name), f"{where}.{name}"
        tensor = layer_input(graph, layer, normal, place)
        if tensor not in windows:
            windows[tensor] = partition(graph, tensor, grid, window)
        with graph.scope(name):
            parts.append(graph.op("Reshape", linear(graph, layer, windows[tensor], place), shape))
    query, key, value = parts  # [W, L, N, D]
    query, key = _rotate(graph, block, query), _rotate(graph, block, key)
    query = graph.op("Transpose", query, perm=[0, 2, 1, 3])  # [W, N, L, D]
    value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
    own = _description(attention)
    operands = operands_of(graph, own, query, key, value, where)
    queries = queries_per_block(heads, window, CACHED_BLOCK_LOGITS)
    if queries is None:
        averaged = average(graph, own, operands, (heads, window.tokens), window, where)
    else:
        averaged = average_in_blocks(graph, own, operands, queries, window, where)
    turned = graph.op("Transpose", averaged, perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", turned, graph.ints(-1, channels))
    tensor = layer_input(graph, attention.o_proj, flat, f"{where}.o_proj")
    return linear(graph, attention.o_proj, unpartition(graph, tensor, grid, window), f"{where}.o_proj")


def _description(attention: Any) -> SimpleNamespace:
    """Return what SAM v1's writer reads of an attention, of transformers or with slots."""
    slots = {slot: slot_module(attention, slot) for slot in SLOTS}
    return SimpleNamespace(
        scale=attention.scaling,
        num_attention_heads=attention.num_attention_heads,
        average=getattr(attention, "average", None),
        **slots,
    )


def _rotate(graph: Graph, block: Any, values: Value) -> Value:
    """Rotate the pairs of channels of queries or keys [W, L, N, D] by their positions.

    A pair (x, y) becomes (x cos - y sin, y cos + x sin). The tables are stored; runtimes share those of equal blocks.
    """
    cosine, sine = (
        table[0][:, None].cpu() for table in block.rotary_emb(block.position_ids.float(), block.position_ids)
    )  # [L, 1, D]
    depth = cosine.shape[-1]
    swapped = torch.arange(depth).view(-1, 2).flip(1).flatten()
    signs = torch.tensor([-1.0, 1.0]).repeat(depth // 2)
    other = graph.op("Gather", values, graph.constant(swapped.numpy(), "swapped"), axis=3)
    turned = graph.op("Mul", other, graph.parameter(sine * signs, "sine"))
    return graph.op("Add", graph.op("Mul", values, graph.parameter(cosine, "cosine")), turned)
