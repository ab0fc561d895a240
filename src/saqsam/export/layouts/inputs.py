"""Adapters from the inputs of clients to those of saqsam's graphs, as ONNX nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saqsam.export.layouts.contract import Context

if TYPE_CHECKING:  # an extra
    from saqsam.export.onnx.graph import Graph, Value

IMAGES, _PROMPTS = ("images",), ("prompts",)
"""Keys of the numbers of images and of prompts per image, int64 [1], in the cache of a graph."""
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
    """Declare points [B, P, N, 2] of B images and append a padding point: [B * P, N + 1, 2]."""
    points = graph.input(name, ("images", "prompts", "points", 2))
    shape = graph.op("Shape", points)
    graph.cached(IMAGES, lambda: graph.op("Slice", shape, graph.ints(0), graph.ints(1)))
    graph.cached(_PROMPTS, lambda: graph.op("Slice", shape, graph.ints(1), graph.ints(2)))
    target = graph.op(
        "Concat", graph.ints(-1), graph.op("Slice", shape, graph.ints(2), graph.ints(4)), axis=0
    )
    rows = graph.op("Reshape", points, target)
    return graph.op("Pad", rows, graph.ints(0, 0, 0, 0, 1, 0), graph.scalar(0.0))


def padded_labels(graph: Graph, context: Context, name: str) -> Value:
    """Declare labels [B, P, N], int64, and append that of the padding point: float32 [B * P, N + 1].

    Labels below -1 become -1: transformers uses -10 for points that do not count.
    """
    labels = graph.input(name, ("images", "prompts", "points"), _INT64)
    count = graph.op("Slice", graph.op("Shape", labels), graph.ints(2), graph.ints(3))
    target = graph.op("Concat", graph.ints(-1), count, axis=0)
    rows = graph.op("Cast", graph.op("Reshape", labels, target), to=_FLOAT)
    known = graph.op("Max", rows, graph.scalar(_PADDING_LABEL))
    return graph.op("Pad", known, graph.ints(0, 0, 0, 1), graph.scalar(_PADDING_LABEL))


def repeated_embeddings(graph: Graph, context: Context, name: str) -> Value:
    """Declare embeddings [B, C, h, w], and repeat each for its P prompts; a single one stays alone."""
    size = context.spec.embedding[1:]
    embeddings = graph.input(name, ("images", *size))
    images, prompts = (graph.cached(key, _undeclared) for key in (IMAGES, _PROMPTS))
    times = graph.op("Where", graph.op("Greater", images, graph.ints(1)), prompts, graph.ints(1))
    apart = graph.op("Unsqueeze", embeddings, graph.ints(1))
    target = graph.op("Concat", images, times, graph.ints(*size), axis=0)
    return graph.op("Reshape", graph.op("Expand", apart, target), graph.ints(-1, *size))


def _undeclared() -> Value:
    raise AssertionError("points are declared first")


def ignored_embeddings(graph: Graph, context: Context, name: str) -> Value:
    """Declare embeddings [B, C, h, w] that clients send and the graph does not read."""
    return graph.input(name, ("images", *context.spec.embedding[1:]))


def no_mask(graph: Graph, context: Context) -> Value:
    """Return an empty mask [1, 1, 4h, 4w]."""
    size = context.spec.mask_size
    return graph.op("Expand", graph.scalar(0.0), graph.ints(1, 1, size, size))


def without_mask(graph: Graph, context: Context) -> Value:
    """Return 0, float32 [1]: there is no mask."""
    return graph.floats(0.0)
