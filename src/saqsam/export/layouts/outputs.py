"""Adapters from the outputs of saqsam's graphs to those of clients, as ONNX nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saqsam.export.layouts.contract import Context
from saqsam.export.layouts.prompts import IMAGES

if TYPE_CHECKING:  # an extra
    from saqsam.export.onnx.graph import Graph, Value

_UINT8, _INT64 = 2, 7
"""Values of `onnx.TensorProto.DataType`."""


def three_masks(graph: Graph, context: Context, masks: Value, name: str) -> None:
    """Declare the masks for ambiguous prompts, [B, P, 3, 4h, 4w], of all masks [B * P, 4, 4h, 4w]."""
    shape = (context.spec.masks - 1, context.spec.mask_size, context.spec.mask_size)
    graph.output(_by_image(graph, _without_first(graph, masks), shape), name, ("images", "prompts", *shape))


def three_scores(graph: Graph, context: Context, scores: Value, name: str) -> None:
    """Declare the predicted IoUs of the masks for ambiguous prompts, [B, P, 3], of all IoUs [B * P, 4]."""
    shape = (context.spec.masks - 1,)
    graph.output(_by_image(graph, _without_first(graph, scores), shape), name, ("images", "prompts", *shape))


def object_scores(graph: Graph, context: Context, scores: Value, name: str) -> None:
    """Declare the logits of the prompted objects' presence, [B, P, 1], of [B * P, 1]."""
    graph.output(_by_image(graph, scores, (1,)), name, ("images", "prompts", 1))


def three_masks_of_image(graph: Graph, context: Context, masks: Value, name: str) -> None:
    """Declare the masks for ambiguous prompts of one image, [P, 3, 4h, 4w], of all masks [P, 4, 4h, 4w]."""
    shape = (context.spec.masks - 1, context.spec.mask_size, context.spec.mask_size)
    graph.output(_without_first(graph, masks), name, ("prompts", *shape))


def three_scores_of_image(graph: Graph, context: Context, scores: Value, name: str) -> None:
    """Declare the predicted IoUs of the masks for ambiguous prompts of one image, [P, 3], of all IoUs [P, 4]."""
    graph.output(_without_first(graph, scores), name, ("prompts", context.spec.masks - 1))


def _without_first(graph: Graph, values: Value) -> Value:
    """Drop the first mask of each prompt, the one for unambiguous prompts."""
    return graph.op("Slice", values, graph.ints(1), graph.ints(2**31 - 1), graph.ints(1))


def _by_image(graph: Graph, values: Value, shape: tuple[int, ...]) -> Value:
    """Sort prompts by image: [B * P, *shape] to [B, P, *shape]."""
    images = graph.cached(IMAGES, lambda: graph.ints(1))
    return graph.op("Reshape", values, graph.op("Concat", images, graph.ints(-1, *shape), axis=0))


def cropped_mask(graph: Graph, context: Context, logits: Value, name: str) -> None:
    """Declare the mask of logits [1, 1, H, W] within its bounds, uint8 [1, 1, h, w] of 0 and 1."""
    start = graph.op("Concat", _bound(graph, logits, 2, 0), _bound(graph, logits, 3, 0), axis=0)
    last = graph.op("Concat", _bound(graph, logits, 2, 1), _bound(graph, logits, 3, 1), axis=0)
    end = graph.op("Add", last, graph.ints(1))
    mask = graph.op("Slice", _foreground(graph, logits), start, end, graph.ints(2, 3))
    graph.output(mask, name, (1, 1, "crop_height", "crop_width"), _UINT8)


def left(graph: Graph, context: Context, logits: Value, name: str) -> None:
    """Declare the leftmost column of a mask, int64 []."""
    _output_bound(graph, _bound(graph, logits, 3, 0), name)


def top(graph: Graph, context: Context, logits: Value, name: str) -> None:
    """Declare the topmost row of a mask, int64 []."""
    _output_bound(graph, _bound(graph, logits, 2, 0), name)


def right(graph: Graph, context: Context, logits: Value, name: str) -> None:
    """Declare the rightmost column of a mask, int64 []."""
    _output_bound(graph, _bound(graph, logits, 3, 1), name)


def bottom(graph: Graph, context: Context, logits: Value, name: str) -> None:
    """Declare the bottommost row of a mask, int64 []."""
    _output_bound(graph, _bound(graph, logits, 2, 1), name)


def _output_bound(graph: Graph, bound: Value, name: str) -> None:
    graph.output(graph.op("Squeeze", bound, graph.ints(0)), name, (), _INT64)


def _foreground(graph: Graph, logits: Value) -> Value:
    """Return the pixels of a mask as uint8."""

    def make() -> Value:
        return graph.op("Cast", graph.op("Greater", logits, graph.scalar(0.0)), to=_UINT8)

    return graph.cached(("foreground", logits), make)


def _bound(graph: Graph, logits: Value, axis: int, last: int) -> Value:
    """Return the first or the last index along an axis at which a mask has pixels, int64 [1].

    The bounds of an empty mask are those of the image.
    """

    def occupied() -> Value:
        others = (other for other in range(4) if other != axis)
        return graph.maximum(_foreground(graph, logits), *others, keepdims=False)

    line = graph.cached(("occupied", logits, axis), occupied)
    return graph.cached(
        ("bound", logits, axis, last),
        lambda: graph.op("ArgMax", line, axis=0, keepdims=1, select_last_index=last),
    )
