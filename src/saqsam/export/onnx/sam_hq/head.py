"""The mask head of SAM-HQ as ONNX nodes: SAM v1's masks, and the high-quality mask added to each."""

from __future__ import annotations

from typing import Any

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import activation, dequantized, layer_norm, quantized
from saqsam.export.onnx.sam.decoder import masks_by_pixel, mlp_of_head, upscaled_embedding, write_heads
from saqsam.export.onnx.sam.encoder import convolution_weight
from saqsam.export.packed import slot_module
from saqsam.models.sam_hq.family import SamHQFamily


def write_hq_heads(
    graph: Graph, decoder: Any, tokens: Value, image: Value, side: int, features: Value
) -> tuple[Value, Value]:
    """Predict masks [P, M, 4h, 4w] and IoUs [P, M].

    Args:
        graph: Graph of the mask decoder.
        decoder: The quantized mask decoder.
        tokens: [P, T, C] of the two-way transformer.
        image: Image tokens [P, h * w, C].
        side: Side of the image embedding.
        features: Features of the high-quality mask, [1, C / 8, 4h, 4w].
    """
    masks, ious = write_heads(graph, decoder, tokens, image, side)
    fine = graph.cached(("upscaled", image), lambda: upscaled_embedding(graph, decoder, image, side))
    channels, pixels = decoder.mask_conv1.weight.shape[1], (4 * side) ** 2
    with graph.scope("hq_mask"):
        grid = _convolution(
            graph, decoder.mask_conv1, masks_by_pixel(graph, fine, side, channels), "mask_conv1"
        )
        rows = graph.op("Transpose", grid, perm=[0, 2, 3, 1])
        rows = activation(graph, decoder.activation, layer_norm(graph, decoder.mask_norm, rows))
        grid = _convolution(
            graph, decoder.mask_conv2, graph.op("Transpose", rows, perm=[0, 3, 1, 2]), "mask_conv2"
        )
        grid = graph.op("Reshape", graph.op("Add", grid, features), graph.ints(0, 0, pixels))
        last = SamHQFamily.mask_token + len(decoder.output_hypernetworks_mlps)
        weight = mlp_of_head(graph, decoder.hq_mask_mlp, tokens, last, "mask_decoder.hq_mask_mlp")
        mask = graph.op("MatMul", graph.op("Unsqueeze", weight, graph.ints(1)), grid)
        mask = graph.op("Reshape", mask, graph.ints(-1, 1, 4 * side, 4 * side))
        return graph.op("Add", masks, mask), ious


def _convolution(graph: Graph, layer: Any, grid: Value, name: str) -> Value:
    """Apply a size-preserving convolution to maps [P, K, H, W].

    It multiplies floats, quantized or not: the values under a 3 x 3 kernel, gathered for an integer product, would take
    75 MB for each prompt of a SAM at 1024 px.
    """
    with graph.scope(name):
        where = f"mask_decoder.{name}"
        values = dequantized(graph, quantized(graph, grid, slot_module(layer, "input_quantizer"), where))
        weight = convolution_weight(graph, layer)
        high, wide = layer.weight.shape[2:]
        return graph.op(
            "Conv",
            values,
            weight,
            graph.parameter(layer.bias, "bias"),
            kernel_shape=[high, wide],
            pads=[high // 2, wide // 2] * 2,
        )
