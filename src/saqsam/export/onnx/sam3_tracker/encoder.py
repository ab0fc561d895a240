"""The image encoder of SAM 3's tracker as an ONNX graph: pixels to embedding and high-resolution features."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Sam3TrackerModel

from saqsam.export.onnx.graph import Graph, Value
from saqsam.export.onnx.layers import activation, layer_norm
from saqsam.export.onnx.sam.decoder import upscale
from saqsam.export.onnx.sam.encoder import convolution, convolution_weight, write_mlp
from saqsam.export.onnx.sam2.encoder import write_map
from saqsam.export.onnx.sam3_tracker.attention import write_attention
from saqsam.export.windows import window_of
from saqsam.models.sam3_tracker.structure import BACKBONE, NECK


def write_encoder(graph: Graph, model: Sam3TrackerModel, images: int | str = 1) -> None:
    """Add the image encoder to an empty graph; inputs and outputs are those of SAM 2's.

    Args:
        graph: Empty graph.
        model: The model.
        images: Images per call, or their name if the number is free.
    """
    backbone = model.vision_encoder.backbone
    size = model.config.prompt_encoder_config.image_size
    side = size // backbone.config.patch_size
    pixels = graph.input("pixel_values", (images, 3, size, size))
    with graph.scope("patch_embed"):
        rows = layer_norm(graph, backbone.layer_norm, _patches(graph, backbone.embeddings, pixels, side))
    for index, block in enumerate(backbone.layers):
        with graph.scope(f"layers.{index}"):
            rows = _block(graph, block, rows, side, f"{BACKBONE}.layers.{index}")
    with graph.scope("neck"):
        _neck(graph, model, rows, side, images)


def _patches(graph: Graph, embeddings: Any, pixels: Value, side: int) -> Value:
    """Embed patches and add the absolute positions: rows [B * h * w, C]."""
    projection = embeddings.patch_embeddings.projection
    weight = convolution_weight(graph, projection)
    size = list(projection.weight.shape[2:])
    channels = projection.weight.shape[0]
    patches = graph.op("Conv", pixels, weight, strides=size, kernel_shape=size)
    flat = graph.op("Reshape", patches, graph.ints(-1, channels, side * side))
    rows = graph.op("Transpose", flat, perm=[0, 2, 1])
    # The small table is stored; runtimes tile it when they load the graph.
    table = graph.parameter(embeddings.position_embeddings, "positions")
    small = int(embeddings.position_embeddings.shape[1] ** 0.5)
    repeats = -(-side // small)
    tiled = graph.op(
        "Tile",
        graph.op("Reshape", table, graph.ints(small, small, channels)),
        graph.ints(repeats, repeats, 1),
    )
    cut = graph.op("Slice", tiled, graph.ints(0, 0), graph.ints(side, side), graph.ints(0, 1))
    placed = graph.op("Add", rows, graph.op("Reshape", cut, graph.ints(side * side, channels)))
    return graph.op("Reshape", placed, graph.ints(-1, channels))


def _block(graph: Graph, block: Any, rows: Value, side: int, where: str) -> Value:
    """Apply a block to rows [B * h * w, C]."""
    with graph.scope("attention"):
        normal = layer_norm(graph, block.layer_norm1, rows)
        window = window_of(block.window_size, side)
        attended = write_attention(graph, block, normal, side, window, f"{where}.attention")
        rows = graph.op("Add", rows, attended)
    with graph.scope("mlp"):
        mlp, name = block.mlp, f"{where}.mlp"
        layers = (mlp.fc1, mlp.activation_fn, mlp.fc2)
        names = (f"{name}.fc1", f"{name}.fc2")
        return write_mlp(graph, layers, block.layer_norm2, rows, names)


def _neck(graph: Graph, model: Sam3TrackerModel, rows: Value, side: int, images: int | str) -> None:
    """Apply the levels of the neck that the decoder reads to rows [B * h * w, C], and declare the outputs."""
    decoder, levels = model.mask_decoder, model.vision_encoder.neck.fpn_layers
    embedding, channels, _ = _level(graph, levels[2], rows, side, f"{NECK}.fpn_layers.2")
    no_memory = graph.parameter(model.no_memory_embedding.reshape(1, -1), "no_memory_embedding")
    embedding = graph.op("Add", embedding, no_memory)
    write_map(graph, embedding, side, (images, channels), "image_embeddings")
    for index, reader in enumerate((decoder.conv_s0, decoder.conv_s1)):
        fine, channels, width = _level(graph, levels[index], rows, side, f"{NECK}.fpn_layers.{index}")
        if not isinstance(reader, nn.Identity):
            where = f"mask_decoder.conv_s{index}"
            fine, channels = convolution(graph, reader, fine, width, where), reader.weight.shape[0]
        write_map(graph, fine, width, (images, channels), f"high_res_features_{index}")


def _level(graph: Graph, level: Any, rows: Value, side: int, where: str) -> tuple[Value, int, int]:
    """Apply a level of the neck to rows [B * h * w, C]: rows, their channels, and the side of their grid."""
    with graph.scope(where.rpartition(".")[2]):
        doublings = 0
        for index, layer in enumerate(level.scale_layers):
            if isinstance(layer, nn.GELU):
                rows = activation(graph, layer, rows)
            else:
                rows = upscale(graph, layer, rows, f"{where}.scale_layers.{index}")
                doublings += 1
        rows = convolution(graph, level.proj1, rows, 0, f"{where}.proj1")
        rows = _by_place(graph, rows, level.proj1.weight.shape[0], side, doublings)
        side = side << doublings
        rows = convolution(graph, level.proj2, rows, side, f"{where}.proj2")
        return rows, level.proj2.weight.shape[0], side


def _by_place(graph: Graph, rows: Value, channels: int, side: int, doublings: int) -> Value:
    """Sort the rows of transposed convolutions, which are in groups of 4 per input, by row and column of the map."""
    if doublings == 0:
        return rows
    halves = [2, 2] * doublings
    grid = graph.op("Reshape", rows, graph.ints(-1, side, side, *halves, channels))
    down = [1, *range(3, 3 + 2 * doublings, 2)]
    right = [2, *range(4, 4 + 2 * doublings, 2)]
    turned = graph.op("Transpose", grid, perm=[0, *down, *right, 3 + 2 * doublings])
    return graph.op("Reshape", turned, graph.ints(-1, channels))
