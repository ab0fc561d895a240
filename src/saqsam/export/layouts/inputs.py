"""Adapters from the inputs of clients to those of saqsam's graphs, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from saqsam.export.layouts.contract import Context
from saqsam.export.layouts.prompts import IMAGES, PROMPTS, undeclared

if TYPE_CHECKING:  # an extra
    from saqsam.export.onnx.graph import Graph, Value

_INT64 = 7
"""Value of `onnx.TensorProto.DataType`."""


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


def repeated(feature: str) -> Callable[[Graph, Context, str], Value]:
    """Return a function that declares a feature map [B, C, h, w], and repeats each for its prompts; one stays alone.

    Args:
        feature: Name of the feature map in `InputSpec.features`.
    """

    def declare(graph: Graph, context: Context, name: str) -> Value:
        size = context.spec.features[feature][1:]
        maps = graph.input(name, ("images", *size))
        images, prompts = (graph.cached(key, undeclared) for key in (IMAGES, PROMPTS))
        times = graph.op("Where", graph.op("Greater", images, graph.ints(1)), prompts, graph.ints(1))
        apart = graph.op("Unsqueeze", maps, graph.ints(1))
        target = graph.op("Concat", images, times, graph.ints(*size), axis=0)
        return graph.op("Reshape", graph.op("Expand", apart, target), graph.ints(-1, *size))

    return declare


def stacked(feature: str) -> Callable[[Graph, Context, str], Value]:
    """Return a function that declares a feature map in a stack of one, [1, B, C, h, w].

    Args:
        feature: Name of the feature map in `InputSpec.features`.
    """

    def declare(graph: Graph, context: Context, name: str) -> Value:
        size = context.spec.features[feature][1:]
        return graph.op("Reshape", graph.input(name, (1, "images", *size)), graph.ints(-1, *size))

    return declare


def ignored_embeddings(graph: Graph, context: Context, name: str) -> Value:
    """Declare embeddings [B, C, h, w] that clients send and the graph does not read."""
    return graph.input(name, ("images", *context.spec.embedding[1:]))


def integer_size(graph: Graph, context: Context, name: str) -> Value:
    """Declare height and width of the original image, int64 [2]."""
    return graph.input(name, (2,), _INT64)


def flag_of_each_mask(graph: Graph, context: Context, name: str) -> Value:
    """Declare whether there is a mask, float32 [M]: one value for all prompts, or one per prompt."""
    flags = graph.input(name, ("flags",))
    return graph.op("Reshape", flags, graph.ints(-1, 1, 1))


def no_mask(graph: Graph, context: Context) -> Value:
    """Return an empty mask [1, 1, 4h, 4w]."""
    size = context.spec.mask_size
    return graph.op("Expand", graph.scalar(0.0), graph.ints(1, 1, size, size))


def without_mask(graph: Graph, context: Context) -> Value:
    """Return 0, float32 [1]: there is no mask."""
    return graph.floats(0.0)
