"""The features of SAM-HQ's mask, which the encoder's graph fuses from the embedding and the tap."""

from __future__ import annotations

from typing import Any

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import activation, layer_norm
from saqsam.export.onnx.sam.decoder import masks_by_pixel, upscale


def write_features(graph: Graph, decoder: Any, embedding: Value, tap: Value, side: int) -> Value:
    """Add the fusion.

    Args:
        graph: Graph of the image encoder.
        decoder: The quantized mask decoder.
        embedding: Image embedding [B, C, h, w].
        tap: Rows [B * h * w, C'] after the first block with global attention.
        side: Side of the embedding.

    Returns:
        [B, C / 8, 4h, 4w].
    """
    channels, _ = decoder.encoder_conv1.weight.shape[:2]
    with graph.scope("hq_features"):
        flat = graph.op("Reshape", embedding, graph.ints(-1, channels, side * side))
        turned = graph.op("Transpose", flat, perm=[0, 2, 1])
        rows = graph.op("Reshape", turned, graph.ints(-1, channels))
        late = _upscale_twice(graph, decoder, "encoder", rows)
        early = _upscale_twice(graph, decoder, "compress_vit", tap)
        return masks_by_pixel(
            graph, graph.op("Add", late, early), side, decoder.encoder_conv2.weight.shape[1]
        )


def _upscale_twice(graph: Graph, decoder: Any, name: str, rows: Value) -> Value:
    """Upscale rows [B * h * w, K] to [16 * B * h * w, C / 8], each place with its 4 x 4 pixels."""
    first, norm, second = (getattr(decoder, f"{name}_{layer}") for layer in ("conv1", "norm", "conv2"))
    with graph.scope(name):
        fine = upscale(graph, first, rows, f"mask_decoder.{name}_conv1")
        fine = activation(graph, decoder.activation, layer_norm(graph, norm, fine))
        return upscale(graph, second, fine, f"mask_decoder.{name}_conv2")
