"""Adapters from the inputs of clients to those of saqsam's graphs, as ONNX nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saqsam.export.layouts.contract import Context

if TYPE_CHECKING:  # an extra
    from saqsam.export.onnx.graph import Graph, Value

_PADDING_LABEL = -1.0
_FLOAT, _INT64 = 1, 7
"""Values of `onnx.TensorProto.DataType`."""


def unprepared_image(graph: Graph, context: Context, name: str) -> Value:
    """Declare an image [image_height, image_width, 3], float32 RGB from 0 to 255; normalize it and pad it to S x S."""
    size = context.spec.image_size
    image = graph.input(name, ("image_height", "image_width", 3))
    centered = graph.op("Sub", image, graph.floats(*context.mean))
    normal = graph.op("Div", centered, graph.floats(*context.std))
    planes = graph.op("Transpose", normal, perm=[2, 0, 1])
    height_and_width = graph.op("Slice", graph.op("Shape", image), graph.ints(0), graph.ints(2))
    missing = graph.op("Sub", graph.ints(size, size), height_and_width)
    pads = graph.op("Concat", graph.ints(0, 0, 0, 0), missing, axis=0)
    padded = graph.op("Pad", planes, pads, graph.scalar(0.0))
    return graph.op("Reshape", padded, graph.ints(1, 3, size, size))


def resized_mask(graph: Graph, context: Context, name: str) -> Value:
    """Declare masks [M, 1, H, W] of any size and resize them to the model's low-resolution masks.

    Clients that are written for models of 1,024 px always send 256 x 256 values.
    """
    size = context.spec.mask_size
    masks = graph.input(name, ("masks", 1, "mask_height", "mask_width"))
    count = graph.op("Slice", graph.op("Shape", masks), graph.ints(0), graph.ints(2))
    target = graph.op("Concat", count, graph.ints(size, size), axis=0)
    resized = graph.op(
        "Resize", masks, "", "", target, mode="linear", coordinate_transformation_mode="half_pixel"
    )
    return graph.op("Reshape", resized, graph.ints(-1, 1, size, size))


def padded_points(graph: Graph, context: Context, name: str) -> Value:
    """Declare points [1, P, N, 2] of one image and append a padding point: [P, N + 1, 2]."""
    points = graph.input(name, (1, "prompts", "points", 2))
    rows = graph.op("Squeeze", points, graph.ints(0))
    return graph.op("Pad", rows, graph.ints(0, 0, 0, 0, 1, 0), graph.scalar(0.0))


def padded_labels(graph: Graph, context: Context, name: str) -> Value:
    """Declare labels [1, P, N], int64, and append that of the padding point: float32 [P, N + 1].

    Labels below -1 become -1: transformers uses -10 for points that do not count.
    """
    labels = graph.input(name, (1, "prompts", "points"), _INT64)
    rows = graph.op("Cast", graph.op("Squeeze", labels, graph.ints(0)), to=_FLOAT)
    known = graph.op("Max", rows, graph.scalar(_PADDING_LABEL))
    return graph.op("Pad", known, graph.ints(0, 0, 0, 1), graph.scalar(_PADDING_LABEL))


def ignored_embedding(graph: Graph, context: Context, name: str) -> Value:
    """Declare an input [1, C, h, w] that clients send and the graph does not read."""
    return graph.input(name, context.spec.embedding)


def no_mask(graph: Graph, context: Context) -> Value:
    """Return an empty mask [1, 1, 4h, 4w]."""
    size = context.spec.mask_size
    return graph.op("Expand", graph.scalar(0.0), graph.ints(1, 1, size, size))


def without_mask(graph: Graph, context: Context) -> Value:
    """Return 0, float32 [1]: there is no mask."""
    return graph.floats(0.0)
