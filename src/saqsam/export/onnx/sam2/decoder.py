"""Prompt encoder and mask decoder of SAM 2 as an ONNX graph.

The interface is that of SAM v1's graph, with the high-resolution features as further inputs and the object score as a
further output. Clients append a padding point to every prompt, boxes included, as SAM 2's training did.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from transformers import Sam2Model

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import activation, layer_norm
from saqsam.export.onnx.sam.decoder import (
    dense_embedding,
    grid_positions,
    hypernetworks,
    masks_by_pixel,
    mlp_of_head,
    point_embedding,
    upscale,
    write_positions,
)
from saqsam.export.onnx.sam.two_way_transformer import TwoWayTransformer
from saqsam.models.sam2.family import Sam2Family
from saqsam.models.two_way import SAM2_NAMES

_OBJECT_TOKEN, _IOU_TOKEN, _MASK_TOKEN = 0, Sam2Family.iou_token, Sam2Family.mask_token


def write_decoder(graph: Graph, model: Sam2Model, *, single_mask: bool = False) -> None:
    """Add prompt encoder, mask decoder and the resizing of masks to an empty graph.

    Args:
        graph: Empty graph.
        model: The model.
        single_mask: Return one mask per prompt, chosen by its stability, instead of all.
    """
    config, decoder = model.config, model.mask_decoder
    channels, size = config.prompt_encoder_config.hidden_size, config.prompt_encoder_config.image_size
    side = size // config.prompt_encoder_config.patch_size
    embedding = graph.input("image_embeddings", ("images", channels, side, side))
    finest = graph.input("high_res_features_0", ("images", channels // 8, 4 * side, 4 * side))
    fine = graph.input("high_res_features_1", ("images", channels // 4, 2 * side, 2 * side))
    coords = graph.input("point_coords", ("prompts", "points", 2))
    labels = graph.input("point_labels", ("prompts", "points"))
    mask_input = graph.input("mask_input", ("masks", 1, 4 * side, 4 * side))
    has_mask = graph.input("has_mask_input", (1,))
    original = graph.input("orig_im_size", (2,))
    prompts = graph.op("Slice", graph.op("Shape", coords), graph.ints(0), graph.ints(1))
    with graph.scope("prompt_encoder"):
        kinds = torch.cat(
            [model.prompt_encoder.not_a_point_embed.weight, model.prompt_encoder.point_embed.weight]
        )
        points = point_embedding(graph, model.prompt_encoder, kinds, coords, labels, size)
        dense = dense_embedding(graph, model.prompt_encoder, mask_input, has_mask, side)
    with graph.scope("mask_decoder"):
        output = Sam2Family().output_tokens(model).detach()
        start = graph.op(
            "Expand",
            graph.parameter(output[None], "output_tokens"),
            graph.op("Concat", prompts, graph.ints(*output.shape), axis=0),
        )
        tokens = graph.op("Concat", start, points, axis=1)  # [P, T, C]
        flat = graph.op("Reshape", embedding, graph.ints(-1, channels, side * side))
        image = graph.op("Add", dense, graph.op("Transpose", flat, perm=[0, 2, 1]))  # [M, h * w, C]
        positions = grid_positions(graph, model.prompt_encoder, side)
        transformer = TwoWayTransformer(graph, decoder.transformer, positions, SAM2_NAMES)
        tokens, image = transformer.run(tokens, image)
        masks = _masks(graph, decoder, tokens, image, (finest, fine), side)
        with graph.scope("heads"):
            ious = mlp_of_head(
                graph, decoder.iou_prediction_head, tokens, _IOU_TOKEN, "mask_decoder.iou_prediction_head"
            )
            score = mlp_of_head(
                graph, decoder.pred_obj_score_head, tokens, _OBJECT_TOKEN, "mask_decoder.pred_obj_score_head"
            )
    if single_mask:
        masks, ious = _select(graph, masks, ious, decoder)
    count = 1 if single_mask else decoder.num_mask_tokens
    with graph.scope("postprocess"):
        large = _resize(graph, masks, original)
    graph.output(large, "masks", ("prompts", count, "height", "width"))
    graph.output(ious, "iou_predictions", ("prompts", count))
    graph.output(masks, "low_res_masks", ("prompts", count, 4 * side, 4 * side))
    graph.output(score, "object_score_logits", ("prompts", 1))


def write_image_positions(graph: Graph, model: Sam2Model) -> None:
    """Add the positional embedding of the image tokens to an encoder, as output `image_positional_embeddings`."""
    prompt = model.config.prompt_encoder_config
    write_positions(graph, model.prompt_encoder, prompt.hidden_size, prompt.image_size // prompt.patch_size)


def _masks(
    graph: Graph, decoder: Any, tokens: Value, image: Value, features: tuple[Value, Value], side: int
) -> Value:
    """Predict mask logits [P, M, 4h, 4w]."""
    finest, fine = features
    with graph.scope("upscaling"):
        rows = graph.op("Reshape", image, graph.ints(-1, decoder.upscale_conv1.weight.shape[0]))
        rows = upscale(graph, decoder.upscale_conv1, rows, "mask_decoder.upscale_conv1")
        places = _places(graph, fine, decoder.upscale_conv1.weight.shape[1], side, 1)
        rows = graph.op("Add", _by_prompt(graph, rows, 4 * side * side), places)
        rows = activation(graph, decoder.activation, layer_norm(graph, decoder.upscale_layer_norm, rows))
        rows = graph.op("Reshape", rows, graph.ints(-1, decoder.upscale_conv2.weight.shape[0]))
        rows = upscale(graph, decoder.upscale_conv2, rows, "mask_decoder.upscale_conv2")
        places = _places(graph, finest, decoder.upscale_conv2.weight.shape[1], side, 2)
        rows = graph.op("Add", _by_prompt(graph, rows, 16 * side * side), places)
        rows = activation(graph, decoder.activation, rows)
    hyper = hypernetworks(graph, decoder, tokens, _MASK_TOKEN)
    return masks_by_pixel(graph, graph.op("MatMul", rows, hyper), side, decoder.num_mask_tokens)


def _by_prompt(graph: Graph, rows: Value, places: int) -> Value:
    """View rows [P * places, C] as [P, places, C]."""
    channels = graph.op("Slice", graph.op("Shape", rows), graph.ints(1), graph.ints(2))
    return graph.op("Reshape", rows, graph.op("Concat", graph.ints(-1, places), channels, axis=0))


def _places(graph: Graph, features: Value, channels: int, side: int, levels: int) -> Value:
    """Sort maps [B, C, s, s] as transposed convolutions order their rows: [B, s * s, C].

    The rows of a cell of the embedding are together, those of a cell's quarter within it, and so on.
    """
    halves = [2] * levels
    # First the channels to the end, then whole pixels to their places: runtimes are slow at doing both at once.
    flat = graph.op("Reshape", features, graph.ints(-1, channels, 4**levels * side * side))
    pixels = graph.op("Transpose", flat, perm=[0, 2, 1])
    grid = graph.op("Reshape", pixels, graph.ints(-1, side, *halves, side, *halves, channels))
    rows, columns = list(range(1, 2 + levels)), list(range(2 + levels, 3 + 2 * levels))
    order = [axis for pair in zip(rows, columns, strict=True) for axis in pair]
    turned = graph.op("Transpose", grid, perm=[0, *order, 3 + 2 * levels])
    return graph.op("Reshape", turned, graph.ints(-1, 4**levels * side * side, channels))


def _select(graph: Graph, masks: Value, ious: Value, decoder: Any) -> tuple[Value, Value]:
    """Select the single mask or, where it is unstable, the one of the others with the best predicted IoU."""
    others = graph.op("Slice", ious, graph.ints(1), graph.ints(decoder.num_mask_tokens), graph.ints(1))
    best = graph.op("Add", graph.op("ArgMax", others, axis=1, keepdims=1), graph.ints(1))  # [P, 1]
    if decoder.dynamic_multimask_via_stability:
        single = graph.op("Slice", masks, graph.ints(0), graph.ints(1), graph.ints(1))
        delta = decoder.dynamic_multimask_stability_delta
        inner, outer = (_area(graph, single, threshold) for threshold in (delta, -delta))
        one = graph.scalar(1.0)
        ratio = graph.op("Div", inner, graph.op("Max", outer, one))
        stability = graph.op("Where", graph.op("Greater", outer, graph.scalar(0.0)), ratio, one)
        least = graph.scalar(decoder.dynamic_multimask_stability_thresh)
        chosen = graph.op("Where", graph.op("GreaterOrEqual", stability, least), graph.ints(0), best)
    else:
        chosen = graph.op("Mul", best, graph.ints(0))
    ious = graph.op("GatherElements", ious, chosen, axis=1)
    masks = graph.op("GatherND", masks, graph.op("Unsqueeze", chosen, graph.ints(-1)), batch_dims=1)
    return masks, ious


def _area(graph: Graph, single: Value, threshold: float) -> Value:
    """Count the pixels of masks [P, 1, h, w] above a threshold: [P, 1]."""
    above = graph.op("Cast", graph.op("Greater", single, graph.scalar(threshold)), to=TensorProto.FLOAT)
    return graph.op("ReduceSum", above, graph.ints(2, 3), keepdims=0)


def _resize(graph: Graph, masks: Value, original: Value) -> Value:
    """Resize logits [P, M, 4h, 4w] to the original image, which was stretched to a square."""
    leading = graph.op("Slice", graph.op("Shape", masks), graph.ints(0), graph.ints(2))
    target = graph.op("Concat", leading, graph.op("Cast", original, to=TensorProto.INT64), axis=0)
    return graph.op(
        "Resize", masks, "", "", target, mode="linear", coordinate_transformation_mode="half_pixel"
    )
