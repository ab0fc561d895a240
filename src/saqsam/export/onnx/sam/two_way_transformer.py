"""The two-way transformer of SAM v1's mask decoder as ONNX nodes.

Computation that all prompts share is done once: as long as image tokens do not depend on the prompts, their keys and
values are projected for one image instead of P.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import (
    activation,
    affine_quantizer,
    dequantized,
    layer_input,
    layer_norm,
    linear,
    quantize,
    quantized,
    rearrange,
    weighted_average,
)
from saqsam.export.packed import slot_module
from saqsam.models.two_way import SAM_NAMES, TwoWayNames


class TwoWayTransformer:
    """Writer of the two-way transformer for tokens [P, T, C] and image tokens [M, h * w, C], where M is 1 or P.

    Args:
        graph: The graph.
        transformer: The quantized `SamTwoWayTransformer`.
        positions: Positional embedding of the image tokens, [h * w, C].
        names: Names of the layers.
    """

    def __init__(
        self, graph: Graph, transformer: Any, positions: Value, names: TwoWayNames = SAM_NAMES
    ) -> None:
        self.graph, self.transformer, self.positions, self.names = graph, transformer, positions, names
        self.where = "mask_decoder.transformer"

    def run(self, tokens: Value, image: Value) -> tuple[Value, Value]:
        """Add all layers and the final attention; return tokens [P, T, C] and image tokens [P, h * w, C]."""
        graph, points = self.graph, tokens
        for index, layer in enumerate(self.transformer.layers):
            with graph.scope(f"layers.{index}"):
                tokens, image = self._layer(layer, tokens, image, points, f"{self.where}.layers.{index}")
        with graph.scope("final_attn_token_to_image"):
            query = graph.op("Add", tokens, points)
            attention = self.transformer.final_attn_token_to_image
            where = f"{self.where}.final_attn_token_to_image"
            attended = self._attend(attention, query, self._placed(image), image, where)
            tokens = graph.op("Add", tokens, attended)
            return layer_norm(graph, self.transformer.layer_norm_final_attn, tokens), image

    def _placed(self, image: Value) -> Value:
        """Add the positions to image tokens, once per tensor."""
        return self.graph.cached(("placed", image), lambda: self.graph.op("Add", image, self.positions))

    def _layer(
        self, layer: Any, tokens: Value, image: Value, points: Value, where: str
    ) -> tuple[Value, Value]:
        graph = self.graph
        with graph.scope("self_attn"):
            if layer.skip_first_layer_pe:
                tokens = self._attend(layer.self_attn, tokens, tokens, tokens, f"{where}.self_attn")
            else:
                query = graph.op("Add", tokens, points)
                attended = self._attend(layer.self_attn, query, query, tokens, f"{where}.self_attn")
                tokens = graph.op("Add", tokens, attended)
            tokens = layer_norm(graph, layer.layer_norm1, tokens)
        with graph.scope("cross_attn_token_to_image"):
            query, name = graph.op("Add", tokens, points), "cross_attn_token_to_image"
            attended = self._attend(
                getattr(layer, name), query, self._placed(image), image, f"{where}.{name}"
            )
            tokens = layer_norm(graph, layer.layer_norm2, graph.op("Add", tokens, attended))
        with graph.scope("mlp"):
            mlp = layer.mlp
            first, second = self.names.mlp
            hidden = self._linear(getattr(mlp, first), tokens, f"{where}.mlp.{first}")
            hidden = activation(graph, getattr(mlp, self.names.activation), hidden)
            out = self._linear(getattr(mlp, second), hidden, f"{where}.mlp.{second}")
            tokens = layer_norm(graph, layer.layer_norm3, graph.op("Add", tokens, out))
        with graph.scope("cross_attn_image_to_token"):
            query, name = graph.op("Add", tokens, points), "cross_attn_image_to_token"
            attended = self._attend(
                getattr(layer, name), self._placed(image), query, tokens, f"{where}.{name}"
            )
            image = layer_norm(graph, layer.layer_norm4, graph.op("Add", image, attended))
        return tokens, image

    def _linear(self, layer: Any, value: Value, where: str) -> Value:
        """Apply a linear layer to [B, R, K] and return [B, R, C], through the rows [B * R, K] that `Gemm` takes."""
        graph = self.graph
        tensor = layer_input(graph, layer, value, where)
        inputs, outputs = layer.in_features, layer.out_features
        rows = rearrange(graph, tensor, "Reshape", graph.ints(-1, inputs))
        batch = graph.cached(
            ("batch", value),
            lambda: graph.op("Slice", graph.op("Shape", value), graph.ints(0), graph.ints(1)),
        )
        projected = linear(graph, layer, rows, where)
        # R stays unknown to the runtime, even where it is a constant: after a layer without biases, or with zero
        # biases, OpenVINO moves the scales of the C columns behind this Reshape, and where it knows an R of C or more
        # it applies them to the R rows instead.
        return graph.op("Reshape", projected, graph.op("Concat", batch, graph.ints(-1, outputs), axis=0))

    def _attend(self, attention: Any, query: Value, key: Value, value: Value, where: str) -> Value:
        """Attend from queries [B, Q, C] to keys and values [B', K, C], where B and B' are 1 or P: [P, Q, C]."""
        graph, heads = self.graph, attention.num_attention_heads
        apart = graph.ints(0, 0, heads, -1)
        parts = []
        for name, tensor in (("q", query), ("k", key), ("v", value)):
            with graph.scope(f"{name}_proj"):
                projected = self._linear(getattr(attention, f"{name}_proj"), tensor, f"{where}.{name}_proj")
                parts.append(graph.op("Reshape", projected, apart))
        q = graph.op("Transpose", parts[0], perm=[0, 2, 1, 3])
        v = graph.op("Transpose", parts[2], perm=[0, 2, 1, 3])
        turned, scaling = [0, 2, 3, 1], float(attention.scaling)
        query_quantizer, key_quantizer = (
            slot_module(attention, "query_quantizer"),
            slot_module(attention, "key_quantizer"),
        )
        if isinstance(query_quantizer, nn.Identity):
            scaled = graph.op("Mul", q, graph.scalar(scaling))
            logits = graph.op("MatMul", scaled, graph.op("Transpose", parts[1], perm=turned))
        else:
            query_codes = quantize(graph, q, affine_quantizer(query_quantizer, where))
            key_codes = quantize(graph, parts[1], affine_quantizer(key_quantizer, where))
            key_codes = rearrange(graph, key_codes, "Transpose", perm=turned)
            logits = graph.op("MatMul", query_codes.dequantize(graph, scaling), key_codes.dequantize(graph))
        v_read = dequantized(graph, quantized(graph, v, slot_module(attention, "value_quantizer"), where))
        average = weighted_average(graph, attention, logits, v_read, where)
        joined = graph.op("Reshape", graph.op("Transpose", average, perm=[0, 2, 1, 3]), graph.ints(0, 0, -1))
        with graph.scope("out_proj"):
            layer = getattr(attention, self.names.output)
            return self._linear(layer, joined, f"{where}.{self.names.output}")
