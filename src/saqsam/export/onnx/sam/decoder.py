"""The prompt encoder and mask decoder of a SAM as an ONNX graph, with the inputs of the official SAM export.

Inputs and outputs have the names and meanings of `segment_anything`'s ONNX export, so that its clients run the file
unchanged; the number of prompts P is free here (1 there), and `mask_input` is one for all prompts or one for each.

What all prompts share is computed once: while keys come from the image alone, their projections in the first layer are
those of one image. Transposed convolutions whose kernels do not overlap are products on rows, masks are put into the
order of pixels at the very end, when there are four values a pixel and no longer 32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn
from transformers import SamModel

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import (
    activation,
    affine,
    layer_input,
    layer_norm,
    linear,
    move,
    product,
    quantize,
    read,
    rounded,
    weighted_mean,
)
from saqsam.export.packed import slot_module

_PADDING, _FIRST_LABEL = -1, 0
_FEW_POINTS = 2.5
"""With more points than this, `--single-mask` takes the mask for unambiguous prompts."""


def write_decoder(graph: Graph, model: SamModel, *, single_mask: bool = False) -> None:
    """Add prompt encoder, mask decoder and the resizing of masks.

    Args:
        graph: Empty graph.
        model: The model.
        single_mask: Return one mask a prompt, chosen as the official export does, instead of four.
    """
    config = model.config
    channels, size = config.prompt_encoder_config.hidden_size, config.vision_config.image_size
    side = size // config.vision_config.patch_size
    embedding = graph.input("image_embeddings", (1, channels, side, side))
    coords = graph.input("point_coords", ("prompts", "points", 2))
    labels = graph.input("point_labels", ("prompts", "points"))
    mask_input = graph.input("mask_input", ("masks", 1, 4 * side, 4 * side))
    has_mask = graph.input("has_mask_input", (1,))
    original = graph.input("orig_im_size", (2,))
    shape = graph.op("Shape", coords)
    prompts = graph.op("Slice", shape, graph.ints(0), graph.ints(1))
    with graph.scope("prompt_encoder"):
        points = _points(graph, model.prompt_encoder, coords, labels, size)
        dense = _dense(graph, model.prompt_encoder, mask_input, has_mask, side)
    decoder = model.mask_decoder
    with graph.scope("mask_decoder"):
        output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).detach()
        start = graph.op(
            "Expand",
            graph.parameter(output[None], "output_tokens"),
            graph.op("Concat", prompts, graph.ints(*output.shape), axis=0),
        )
        tokens = graph.op("Concat", start, points, axis=1)  # [P, T, C]
        image = graph.op("Transpose", graph.op("Reshape", embedding, graph.ints(channels, -1)), perm=[1, 0])
        image = graph.op("Add", dense, image)  # [M, h * w, C]
        positions = _grid_positions(graph, model.prompt_encoder, side)
        transformer = _Transformer(graph, decoder.transformer, positions)
        tokens, image = transformer.run(tokens, image)
        masks, ious = _heads(graph, decoder, tokens, image, side)
    if single_mask:
        masks, ious = _select(graph, masks, ious, shape)
    count = 1 if single_mask else decoder.num_mask_tokens
    with graph.scope("postprocess"):
        large = _resize(graph, masks, original, size)
    graph.output(large, "masks", ("prompts", count, "height", "width"))
    graph.output(ious, "iou_predictions", ("prompts", count))
    graph.output(masks, "low_res_masks", ("prompts", count, 4 * side, 4 * side))


def _points(graph: Graph, encoder: Any, coords: Value, labels: Value, size: int) -> Value:
    """Embeddings [P, N, C] of points [P, N, 2] in the pixels of the input, by their labels [P, N].

    0 and 1 are points beside and on the object, 2 and 3 the first and second corner of a box, -1 is padding.
    """
    # 2 * (x + 0.5) / S - 1
    scaled = graph.op("Mul", coords, graph.scalar(2 / size))
    wave = _waves(graph, encoder, graph.op("Add", scaled, graph.scalar(1 / size - 1)))
    kinds = [encoder.not_a_point_embed.weight, *(embed.weight for embed in encoder.point_embed)]
    table = graph.parameter(torch.cat(kinds).detach(), "labels")
    index = graph.op("Cast", labels, to=TensorProto.INT64)
    label = graph.op("Gather", table, graph.op("Sub", index, graph.ints(_PADDING)))
    is_point = graph.op(
        "Cast", graph.op("GreaterOrEqual", index, graph.ints(_FIRST_LABEL)), to=TensorProto.FLOAT
    )
    kept = graph.op("Mul", wave, graph.op("Unsqueeze", is_point, graph.ints(-1)))
    return graph.op("Add", kept, label)


def _waves(graph: Graph, encoder: Any, places: Value) -> Value:
    """Positional embedding [..., C] of places [..., 2] in [-1, 1]."""
    frequencies = graph.parameter(encoder.shared_embedding.positional_embedding, "frequencies")
    angles = graph.op("Mul", graph.op("MatMul", places, frequencies), graph.scalar(2 * math.pi))
    return graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=-1)


def _grid_positions(graph: Graph, encoder: Any, side: int) -> Value:
    """Positions of the image tokens, [h * w, C]; runtimes compute them when they load."""
    middles = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
    places = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    return _waves(graph, encoder, graph.constant(places, "places"))


def _dense(graph: Graph, encoder: Any, mask_input: Value, has_mask: Value, side: int) -> Value:
    """Rows [M, h * w, C] of the masks [M, 1, 4 h, 4 w], or of there being none."""
    embed = encoder.mask_embed
    grid = mask_input
    hidden: Value = ""
    for conv, norm in (
        (embed.conv1, embed.layer_norm1),
        (embed.conv2, embed.layer_norm2),
        (embed.conv3, None),
    ):
        grid = graph.op(
            "Conv",
            grid,
            graph.parameter(conv.weight, "weight"),
            graph.parameter(conv.bias, "bias"),
            strides=list(conv.stride),
            kernel_shape=list(conv.kernel_size),
        )
        hidden = graph.op("Transpose", grid, perm=[0, 2, 3, 1])
        if norm is not None:
            hidden = activation(graph, embed.activation, layer_norm(graph, norm, hidden))
            grid = graph.op("Transpose", hidden, perm=[0, 3, 1, 2])
    rows = graph.op("Reshape", hidden, graph.ints(0, side * side, -1))
    none = graph.parameter(encoder.no_mask_embed.weight.detach()[None], "no_mask")
    # A mask that is not meant may hold anything, so it is not multiplied by 0.
    return graph.op("Where", graph.op("Greater", has_mask, graph.scalar(0.5)), rows, none)


class _Transformer:
    """The two-way transformer on rows: tokens [P, T, C], image tokens [M, h * w, C] with M of 1 or P."""

    def __init__(self, graph: Graph, transformer: Any, positions: Value) -> None:
        self.graph, self.transformer, self.positions = graph, transformer, positions
        self.where = "mask_decoder.transformer"

    def run(self, tokens: Value, image: Value) -> tuple[Value, Value]:
        graph, points = self.graph, tokens
        for index, layer in enumerate(self.transformer.layers):
            with graph.scope(f"layers.{index}"):
                tokens, image = self._layer(layer, tokens, image, points, f"{self.where}.layers.{index}")
        with graph.scope("final_attn_token_to_image"):
            query = graph.op("Add", tokens, points)
            attention = self.transformer.final_attn_token_to_image
            where = f"{self.where}.final_attn_token_to_image"
            found = self._attend(attention, query, self._placed(image), image, where)
            tokens = graph.op("Add", tokens, found)
            return layer_norm(graph, self.transformer.layer_norm_final_attn, tokens), image

    def _placed(self, image: Value) -> Value:
        """Image tokens with their positions."""
        return self.graph.once(("placed", image), lambda: self.graph.op("Add", image, self.positions))

    def _layer(
        self, layer: Any, tokens: Value, image: Value, points: Value, where: str
    ) -> tuple[Value, Value]:
        graph = self.graph
        with graph.scope("self_attn"):
            if layer.skip_first_layer_pe:
                tokens = self._attend(layer.self_attn, tokens, tokens, tokens, f"{where}.self_attn")
            else:
                query = graph.op("Add", tokens, points)
                found = self._attend(layer.self_attn, query, query, tokens, f"{where}.self_attn")
                tokens = graph.op("Add", tokens, found)
            tokens = layer_norm(graph, layer.layer_norm1, tokens)
        with graph.scope("cross_attn_token_to_image"):
            query, name = graph.op("Add", tokens, points), "cross_attn_token_to_image"
            found = self._attend(getattr(layer, name), query, self._placed(image), image, f"{where}.{name}")
            tokens = layer_norm(graph, layer.layer_norm2, graph.op("Add", tokens, found))
        with graph.scope("mlp"):
            mlp = layer.mlp
            hidden = self._linear(mlp.lin1, tokens, f"{where}.mlp.lin1")
            out = self._linear(mlp.lin2, activation(graph, mlp.act, hidden), f"{where}.mlp.lin2")
            tokens = layer_norm(graph, layer.layer_norm3, graph.op("Add", tokens, out))
        with graph.scope("cross_attn_image_to_token"):
            query, name = graph.op("Add", tokens, points), "cross_attn_image_to_token"
            found = self._attend(getattr(layer, name), self._placed(image), query, tokens, f"{where}.{name}")
            image = layer_norm(graph, layer.layer_norm4, graph.op("Add", image, found))
        return tokens, image

    def _linear(self, layer: Any, value: Value, where: str) -> Value:
        """Apply a linear layer to [B, R, K] and return [B, R, C], through the rows [B * R, K] that `Gemm` takes."""
        graph = self.graph
        given = layer_input(graph, layer, value, where)
        inputs, outputs = layer.in_features, layer.out_features
        rows = move(graph, given, "Reshape", graph.ints(-1, inputs))
        batch = graph.once(
            ("batch", value),
            lambda: graph.op("Slice", graph.op("Shape", value), graph.ints(0), graph.ints(1)),
        )
        found = linear(graph, layer, rows, where)
        # R stays unknown to the runtime, even where it is a constant: after a layer without biases, or with zero
        # biases, OpenVINO moves the scales of the C columns behind this Reshape, and where it knows an R of C or more
        # it applies them to the R rows instead.
        return graph.op("Reshape", found, graph.op("Concat", batch, graph.ints(-1, outputs), axis=0))

    def _attend(self, attention: Any, query: Value, key: Value, value: Value, where: str) -> Value:
        """Attention of queries [B, Q, C] to keys and values [B', K, C], B or B' being 1 or both P: [P, Q, C]."""
        graph, heads = self.graph, attention.num_attention_heads
        apart = graph.ints(0, 0, heads, -1)
        parts = []
        for name, given in (("q", query), ("k", key), ("v", value)):
            with graph.scope(f"{name}_proj"):
                projected = self._linear(getattr(attention, f"{name}_proj"), given, f"{where}.{name}_proj")
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
            query_codes = quantize(graph, q, affine(query_quantizer, where))
            key_codes = quantize(graph, parts[1], affine(key_quantizer, where))
            key_codes = move(graph, key_codes, "Transpose", perm=turned)
            logits = graph.op("MatMul", query_codes.read(graph, scaling), key_codes.read(graph))
        v_read = read(graph, rounded(graph, v, slot_module(attention, "value_quantizer"), where))
        mean = weighted_mean(graph, attention, logits, v_read, where)
        joined = graph.op("Reshape", graph.op("Transpose", mean, perm=[0, 2, 1, 3]), graph.ints(0, 0, -1))
        with graph.scope("out_proj"):
            return self._linear(attention.out_proj, joined, f"{where}.out_proj")


def _heads(graph: Graph, decoder: Any, tokens: Value, image: Value, side: int) -> tuple[Value, Value]:
    """Masks [P, M, 4 h, 4 w] and predicted IoUs [P, M]."""
    count = decoder.num_mask_tokens
    with graph.scope("upscaling"):
        rows = graph.op("Reshape", image, graph.ints(-1, decoder.upscale_conv1.weight.shape[0]))
        fine = _upscale(graph, decoder.upscale_conv1, rows, "mask_decoder.upscale_conv1")
        fine = activation(graph, decoder.activation, layer_norm(graph, decoder.upscale_layer_norm, fine))
        fine = _upscale(graph, decoder.upscale_conv2, fine, "mask_decoder.upscale_conv2")
        fine = activation(graph, decoder.activation, fine)
        fine = graph.op(
            "Reshape", fine, graph.ints(-1, 16 * side * side, decoder.upscale_conv2.weight.shape[1])
        )
    with graph.scope("hypernetworks"):
        weights = []
        for index, mlp in enumerate(decoder.output_hypernetworks_mlps):
            token = graph.op("Gather", tokens, graph.constant(np.array(1 + index), "index"), axis=1)
            found = _mlp(graph, mlp, token, f"mask_decoder.output_hypernetworks_mlps.{index}")
            weights.append(graph.op("Unsqueeze", found, graph.ints(-1)))
        hyper = graph.op("Concat", *weights, axis=-1)  # [P, C / 8, M]
    masks = graph.op("MatMul", fine, hyper)  # [P, 16 * h * w, M], each place with its 4 x 4 pixels
    masks = graph.op("Reshape", masks, graph.ints(-1, side, side, 2, 2, 2, 2, count))
    masks = graph.op("Transpose", masks, perm=[0, 7, 1, 3, 5, 2, 4, 6])
    masks = graph.op("Reshape", masks, graph.ints(-1, count, 4 * side, 4 * side))
    with graph.scope("iou_prediction_head"):
        token = graph.op("Gather", tokens, graph.constant(np.array(0), "index"), axis=1)
        ious = _mlp(graph, decoder.iou_prediction_head, token, "mask_decoder.iou_prediction_head")
    return masks, ious


def _mlp(graph: Graph, mlp: Any, rows: Value, where: str) -> Value:
    layers = [("proj_in", mlp.proj_in), *((f"layers.{i}", layer) for i, layer in enumerate(mlp.layers))]
    for name, layer in layers:
        given = layer_input(graph, layer, rows, f"{where}.{name}")
        rows = activation(graph, mlp.activation, linear(graph, layer, given, f"{where}.{name}"))
    given = layer_input(graph, mlp.proj_out, rows, f"{where}.proj_out")
    rows = linear(graph, mlp.proj_out, given, f"{where}.proj_out")
    return graph.op("Sigmoid", rows) if mlp.sigmoid_output else rows


def _upscale(graph: Graph, layer: Any, rows: Value, where: str) -> Value:
    """A transposed convolution, 2 x 2 with stride 2, of rows [R, K]: rows [4 R, C], those of one input together."""
    given = rounded(graph, rows, slot_module(layer, "input_quantizer"), where)
    inputs, channels = layer.weight.shape[:2]

    def arrange(weight: NDArray[Any]) -> NDArray[Any]:
        return weight.transpose(0, 2, 3, 1).reshape(inputs, -1)

    found = product(graph, given, layer.weight, layer.bias.detach().repeat(4), where, arrange)
    return graph.op("Reshape", found, graph.ints(-1, channels))


def _select(graph: Graph, masks: Value, ious: Value, shape: Value) -> tuple[Value, Value]:
    """One mask a prompt: the first if there are several points, else that of the best predicted IoU of the others."""
    points = graph.op("Cast", graph.op("Slice", shape, graph.ints(1), graph.ints(2)), to=TensorProto.FLOAT)
    weight = graph.constant(np.array([1000.0, 0.0, 0.0, 0.0], dtype=np.float32), "first")
    scores = graph.op(
        "Add", ious, graph.op("Mul", graph.op("Sub", points, graph.scalar(_FEW_POINTS)), weight)
    )
    best = graph.op("ArgMax", scores, axis=1, keepdims=1)  # [P, 1]
    ious = graph.op("GatherElements", ious, best, axis=1)
    index = graph.op("Unsqueeze", best, graph.ints(-1))
    masks = graph.op("GatherND", masks, index, batch_dims=1)
    return masks, ious


def _resize(graph: Graph, masks: Value, original: Value, size: int) -> Value:
    """Logits [P, M, 4 h, 4 w] at the size of the original image: to the square input, without padding, to the image."""
    linearly = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    leading = graph.op("Slice", graph.op("Shape", masks), graph.ints(0), graph.ints(2))
    square = graph.op("Concat", leading, graph.ints(size, size), axis=0)
    large = graph.op("Resize", masks, "", "", square, **linearly)
    longest = graph.op("ReduceMax", original, graph.ints(0), keepdims=1)
    scale = graph.op("Div", graph.scalar(float(size)), longest)
    inside = graph.op("Floor", graph.op("Add", graph.op("Mul", original, scale), graph.scalar(0.5)))
    inside = graph.op("Cast", inside, to=TensorProto.INT64)
    large = graph.op("Slice", large, graph.ints(0, 0), inside, graph.ints(2, 3))
    wanted = graph.op("Concat", leading, graph.op("Cast", original, to=TensorProto.INT64), axis=0)
    return graph.op("Resize", large, "", "", wanted, **linearly)
