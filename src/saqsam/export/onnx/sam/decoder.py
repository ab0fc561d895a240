"""Prompt encoder and mask decoder of SAM v1 as an ONNX graph, with the interface of the official SAM export.

Inputs and outputs have the names and meanings of `segment_anything`'s ONNX export, so that its clients run the file
unchanged. The number of prompts P is dynamic (1 in the official export); `image_embeddings` and `mask_input` have one
entry for all prompts or one per prompt.

Transposed convolutions have non-overlapping kernels and are matrix products on rows. Masks are sorted by pixel at the
very end, when each pixel has four values instead of 32 channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from transformers import SamModel

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import (
    activation,
    gemm,
    layer_input,
    layer_norm,
    linear,
    quantized,
)
from saqsam.export.onnx.sam.two_way_transformer import TwoWayTransformer
from saqsam.export.packed import slot_module
from saqsam.models.sam.family import SamFamily

_PADDING, _FIRST_LABEL = -1, 0
_MAX_AMBIGUOUS_POINTS = 2.5
"""Number of points, padding included, above which `--single-mask` returns the mask for unambiguous prompts."""


_SAM = SamFamily()

Heads = Callable[..., tuple[Value, Value]]
"""Function with the arguments and results of `write_heads`, and the further feature maps of a family as arguments."""


def write_decoder(
    graph: Graph,
    model: SamModel,
    *,
    single_mask: bool = False,
    family: SamFamily = _SAM,
    heads: Heads | None = None,
) -> None:
    """Add prompt encoder, mask decoder and the resizing of masks to an empty graph.

    Args:
        graph: Empty graph.
        model: The model.
        single_mask: Return one mask per prompt, chosen as in the official export, instead of all.
        family: Family of the model, SAM v1 or one that extends it.
        heads: Writer of its heads; None for `write_heads`.
    """
    config, spec = model.config, family.input_spec(model.config)
    channels, size = config.prompt_encoder_config.hidden_size, config.vision_config.image_size
    side = size // config.vision_config.patch_size
    embedding, *extras = (graph.input(name, ("images", *shape[1:])) for name, shape in spec.features.items())
    coords = graph.input("point_coords", ("prompts", "points", 2))
    labels = graph.input("point_labels", ("prompts", "points"))
    mask_input = graph.input("mask_input", ("masks", 1, 4 * side, 4 * side))
    has_mask = graph.input("has_mask_input", (1,))
    original = graph.input("orig_im_size", (2,))
    shape = graph.op("Shape", coords)
    prompts = graph.op("Slice", shape, graph.ints(0), graph.ints(1))
    with graph.scope("prompt_encoder"):
        encoder = model.prompt_encoder
        kinds = torch.cat([encoder.not_a_point_embed.weight, *(one.weight for one in encoder.point_embed)])
        points = point_embedding(graph, encoder, kinds, coords, labels, size)
        dense = dense_embedding(graph, encoder, mask_input, has_mask, side)
    decoder = model.mask_decoder
    with graph.scope("mask_decoder"):
        output = family.output_tokens(model).detach()
        start = graph.op(
            "Expand",
            graph.parameter(output[None], "output_tokens"),
            graph.op("Concat", prompts, graph.ints(*output.shape), axis=0),
        )
        tokens = graph.op("Concat", start, points, axis=1)  # [P, T, C]
        flat = graph.op("Reshape", embedding, graph.ints(-1, channels, side * side))
        image = graph.op("Add", dense, graph.op("Transpose", flat, perm=[0, 2, 1]))  # [M, h * w, C]
        positions = grid_positions(graph, encoder, side)
        transformer = TwoWayTransformer(graph, decoder.transformer, positions)
        tokens, image = transformer.run(tokens, image)
        masks, ious = (heads or write_heads)(graph, decoder, tokens, image, side, *extras)
    if single_mask:
        masks, ious = _select(graph, masks, ious, shape, spec.masks)
    count = 1 if single_mask else spec.masks
    with graph.scope("postprocess"):
        large = _resize(graph, masks, original, size)
    graph.output(large, "masks", ("prompts", count, "height", "width"))
    graph.output(ious, "iou_predictions", ("prompts", count))
    graph.output(masks, "low_res_masks", ("prompts", count, 4 * side, 4 * side))


def write_image_positions(graph: Graph, model: SamModel) -> None:
    """Add the positional embedding of the image tokens to an encoder, as output `image_positional_embeddings`."""
    channels = model.config.prompt_encoder_config.hidden_size
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    write_positions(graph, model.prompt_encoder, channels, side)


def write_positions(graph: Graph, encoder: Any, channels: int, side: int) -> None:
    """Add the positional embedding of a grid, repeated for each of the B images: [B, C, h, w]."""
    with graph.scope("image_positions"):
        rows = grid_positions(graph, encoder, side)
        turned = graph.op("Transpose", rows, perm=[1, 0])
        grid = graph.op("Reshape", turned, graph.ints(1, channels, side, side))
        images = graph.op("Slice", graph.op("Shape", "pixel_values"), graph.ints(0), graph.ints(1))
        target = graph.op("Concat", images, graph.ints(channels, side, side), axis=0)
        repeated = graph.op("Expand", grid, target)
    shape = (graph.shape_of("pixel_values")[0], channels, side, side)
    graph.output(repeated, "image_positional_embeddings", shape)


def point_embedding(
    graph: Graph, encoder: Any, kinds: torch.Tensor, coords: Value, labels: Value, size: int
) -> Value:
    """Embed points [P, N, 2] in pixels of the input with labels [P, N]: [P, N, C].

    Labels 0 and 1 are background and foreground points, 2 and 3 the first and second corner of a box, -1 is padding.
    `kinds` are the embeddings of labels -1 to 3, [5, C].
    """
    # 2 * (x + 0.5) / S - 1
    scaled = graph.op("Mul", coords, graph.scalar(2 / size))
    wave = _waves(graph, encoder, graph.op("Add", scaled, graph.scalar(1 / size - 1)))
    table = graph.parameter(kinds.detach(), "labels")
    index = graph.op("Cast", labels, to=TensorProto.INT64)
    label = graph.op("Gather", table, graph.op("Sub", index, graph.ints(_PADDING)))
    is_point = graph.op(
        "Cast", graph.op("GreaterOrEqual", index, graph.ints(_FIRST_LABEL)), to=TensorProto.FLOAT
    )
    kept = graph.op("Mul", wave, graph.op("Unsqueeze", is_point, graph.ints(-1)))
    return graph.op("Add", kept, label)


def _waves(graph: Graph, encoder: Any, places: Value) -> Value:
    """Return the positional embedding [..., C] of places [..., 2] in [-1, 1]."""
    frequencies = graph.parameter(encoder.shared_embedding.positional_embedding, "frequencies")
    angles = graph.op("Mul", graph.op("MatMul", places, frequencies), graph.scalar(2 * math.pi))
    return graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=-1)


def grid_positions(graph: Graph, encoder: Any, side: int) -> Value:
    """Return the positional embedding of the image tokens, [h * w, C], which runtimes fold when they load the graph."""
    middles = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
    places = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    return _waves(graph, encoder, graph.constant(places, "places"))


def dense_embedding(graph: Graph, encoder: Any, mask_input: Value, has_mask: Value, side: int) -> Value:
    """Embed masks [M, 1, 4h, 4w] as rows [M, h * w, C], or return the "no mask" embedding where `has_mask` is 0.

    `has_mask` has one value, or is [M, 1, 1]. Without any mask, the rows are [M, 1, C], and only one cell of the unused
    input is computed.
    """
    embed = encoder.mask_embed
    is_given = graph.op("Greater", has_mask, graph.scalar(0.5))
    most = graph.maximum(graph.op("Reshape", has_mask, graph.ints(-1)), 0, keepdims=True)
    is_any_given = graph.op("Greater", most, graph.scalar(0.5))
    ends = graph.op("Where", is_any_given, graph.ints(4 * side, 4 * side), graph.ints(4, 4))
    grid = graph.op("Slice", mask_input, graph.ints(0, 0), ends, graph.ints(2, 3))
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
    rows = graph.op("Reshape", hidden, graph.ints(0, -1, encoder.no_mask_embed.weight.shape[1]))
    none = graph.parameter(encoder.no_mask_embed.weight.detach()[None], "no_mask")
    # Where, not Mul by 0: an unused mask input may hold NaN.
    return graph.op("Where", is_given, rows, none)


def upscaled_embedding(graph: Graph, decoder: Any, image: Value, side: int) -> Value:
    """Upscale image tokens [P, h * w, C] to [P, 16 * h * w, C / 8], each place with its 4 x 4 pixels."""
    with graph.scope("upscaling"):
        rows = graph.op("Reshape", image, graph.ints(-1, decoder.upscale_conv1.weight.shape[0]))
        fine = upscale(graph, decoder.upscale_conv1, rows, "mask_decoder.upscale_conv1")
        fine = activation(graph, decoder.activation, layer_norm(graph, decoder.upscale_layer_norm, fine))
        fine = upscale(graph, decoder.upscale_conv2, fine, "mask_decoder.upscale_conv2")
        fine = activation(graph, decoder.activation, fine)
        return graph.op(
            "Reshape", fine, graph.ints(-1, 16 * side * side, decoder.upscale_conv2.weight.shape[1])
        )


def write_heads(graph: Graph, decoder: Any, tokens: Value, image: Value, side: int) -> tuple[Value, Value]:
    """Predict masks [P, M, 4h, 4w] and IoUs [P, M]."""
    fine = graph.cached(("upscaled", image), lambda: upscaled_embedding(graph, decoder, image, side))
    hyper = hypernetworks(graph, decoder, tokens, SamFamily.mask_token)
    masks = masks_by_pixel(
        graph, graph.op("MatMul", fine, hyper), side, len(decoder.output_hypernetworks_mlps)
    )
    with graph.scope("iou_prediction_head"):
        where = "mask_decoder.iou_prediction_head"
        ious = mlp_of_head(graph, decoder.iou_prediction_head, tokens, SamFamily.iou_token, where)
    return masks, ious


def hypernetworks(graph: Graph, decoder: Any, tokens: Value, first: int) -> Value:
    """Return the weights of the masks, [P, C / 8, M], from tokens [P, T, C] whose mask tokens begin at `first`."""
    with graph.scope("hypernetworks"):
        weights = []
        for index, mlp in enumerate(decoder.output_hypernetworks_mlps):
            where = f"mask_decoder.output_hypernetworks_mlps.{index}"
            weight = mlp_of_head(graph, mlp, tokens, first + index, where)
            weights.append(graph.op("Unsqueeze", weight, graph.ints(-1)))
        return graph.op("Concat", *weights, axis=-1)


def masks_by_pixel(graph: Graph, masks: Value, side: int, count: int) -> Value:
    """Sort masks [P, 16 * h * w, M], each place with its 4 x 4 pixels, as [P, M, 4h, 4w]."""
    masks = graph.op("Reshape", masks, graph.ints(-1, side, side, 2, 2, 2, 2, count))
    masks = graph.op("Transpose", masks, perm=[0, 7, 1, 3, 5, 2, 4, 6])
    return graph.op("Reshape", masks, graph.ints(-1, count, 4 * side, 4 * side))


def mlp_of_head(graph: Graph, mlp: Any, tokens: Value, index: int, where: str) -> Value:
    """Apply a head to one of the tokens [P, T, C]: [P, K]."""
    token = graph.op("Gather", tokens, graph.constant(np.array(index), "index"), axis=1)
    return _mlp(graph, mlp, token, where)


def _mlp(graph: Graph, mlp: Any, rows: Value, where: str) -> Value:
    layers = [("proj_in", mlp.proj_in), *((f"layers.{i}", layer) for i, layer in enumerate(mlp.layers))]
    for name, layer in layers:
        tensor = layer_input(graph, layer, rows, f"{where}.{name}")
        rows = activation(graph, mlp.activation, linear(graph, layer, tensor, f"{where}.{name}"))
    tensor = layer_input(graph, mlp.proj_out, rows, f"{where}.proj_out")
    rows = linear(graph, mlp.proj_out, tensor, f"{where}.proj_out")
    return graph.op("Sigmoid", rows) if mlp.sigmoid_output else rows


def upscale(graph: Graph, layer: Any, rows: Value, where: str) -> Value:
    """Apply a 2 x 2 transposed convolution with stride 2 to rows [R, K]: rows [4R, C], in groups of 4 per input."""
    tensor = quantized(graph, rows, slot_module(layer, "input_quantizer"), where)
    inputs, channels = layer.weight.shape[:2]

    def arrange(weight: NDArray[Any]) -> NDArray[Any]:
        return weight.transpose(0, 2, 3, 1).reshape(inputs, -1)

    pixels = gemm(graph, tensor, layer.weight, layer.bias.detach().repeat(4), where, arrange)
    return graph.op("Reshape", pixels, graph.ints(-1, channels))


def _select(graph: Graph, masks: Value, ious: Value, shape: Value, count: int) -> tuple[Value, Value]:
    """Select one of `count` masks per prompt: the first for several points, else the best of the others by its IoU."""
    points = graph.op("Cast", graph.op("Slice", shape, graph.ints(1), graph.ints(2)), to=TensorProto.FLOAT)
    weight = graph.constant(1000 * np.eye(1, count, dtype=np.float32)[0], "first")
    scores = graph.op(
        "Add", ious, graph.op("Mul", graph.op("Sub", points, graph.scalar(_MAX_AMBIGUOUS_POINTS)), weight)
    )
    best = graph.op("ArgMax", scores, axis=1, keepdims=1)  # [P, 1]
    ious = graph.op("GatherElements", ious, best, axis=1)
    index = graph.op("Unsqueeze", best, graph.ints(-1))
    masks = graph.op("GatherND", masks, index, batch_dims=1)
    return masks, ious


def _resize(graph: Graph, masks: Value, original: Value, size: int) -> Value:
    """Resize logits [P, M, 4h, 4w] to the original image: to the square input, without padding, to the image size."""
    linearly = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    leading = graph.op("Slice", graph.op("Shape", masks), graph.ints(0), graph.ints(2))
    square = graph.op("Concat", leading, graph.ints(size, size), axis=0)
    large = graph.op("Resize", masks, "", "", square, **linearly)
    longest = graph.maximum(original, 0, keepdims=True)
    scale = graph.op("Div", graph.scalar(float(size)), longest)
    inside = graph.op("Floor", graph.op("Add", graph.op("Mul", original, scale), graph.scalar(0.5)))
    inside = graph.op("Cast", inside, to=TensorProto.INT64)
    large = graph.op("Slice", large, graph.ints(0, 0), inside, graph.ints(2, 3))
    target = graph.op("Concat", leading, graph.op("Cast", original, to=TensorProto.INT64), axis=0)
    return graph.op("Resize", large, "", "", target, **linearly)
