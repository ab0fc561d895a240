"""Adapters from the points, labels and boxes of clients to those of saqsam's graphs, as ONNX nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saqsam.export.layouts.contract import Context

if TYPE_CHECKING:  # an extra
    from saqsam.export.onnx.graph import Graph, Value

IMAGES, PROMPTS = ("images",), ("prompts",)
"""Keys of the numbers of images and of prompts per image, int64 [1], in the cache of a graph."""
_POINTS, _LABELS, _BOXES = ("points",), ("labels",), ("boxes",)
"""Keys of the prompts of clients that send points and boxes apart."""
_PADDING_LABEL = -1.0
_ALL = 2**31 - 1
"""End of a slice that keeps what remains."""
_FLOAT, _INT64 = 1, 7
"""Values of `onnx.TensorProto.DataType`."""


def padded_points(graph: Graph, context: Context, name: str) -> Value:
    """Declare points [P, N, 2] and append a padding point: [P, N + 1, 2]."""
    return _pad_points(graph, graph.input(name, ("prompts", "points", 2)))


def padded_labels(graph: Graph, context: Context, name: str) -> Value:
    """Declare labels [P, N] and append that of the padding point: [P, N + 1]."""
    return _pad_labels(graph, graph.input(name, ("prompts", "points")))


def batched_points(graph: Graph, context: Context, name: str) -> Value:
    """Declare points [B, P, N, 2] of B images and append a padding point: [B * P, N + 1, 2]."""
    points = graph.input(name, ("images", "prompts", "points", 2))
    graph.cached(IMAGES, lambda: _dimension(graph, points, 0))
    graph.cached(PROMPTS, lambda: _dimension(graph, points, 1))
    return _pad_points(graph, _by_prompt(graph, points))


def batched_labels(graph: Graph, context: Context, name: str) -> Value:
    """Declare labels [B, P, N], int64, and append that of the padding point: float32 [B * P, N + 1].

    Labels below -1 become -1: transformers uses -10 for points that do not count.
    """
    labels = graph.input(name, ("images", "prompts", "points"), _INT64)
    return _pad_labels(graph, _known_labels(graph, _by_prompt(graph, labels)))


def points_beside_boxes(graph: Graph, context: Context, name: str) -> Value:
    """Declare points [B, P, N, 2] of B images, which `points_and_corners` reads; N is 0 where there are only boxes."""
    return graph.cached(_POINTS, lambda: graph.input(name, ("images", "point_prompts", "points", 2)))


def labels_beside_boxes(graph: Graph, context: Context, name: str) -> Value:
    """Declare labels [B, P, N], int64, which `labels_and_corners` reads."""
    return graph.cached(_LABELS, lambda: graph.input(name, ("images", "label_prompts", "points"), _INT64))


def boxes(graph: Graph, context: Context, name: str) -> Value:
    """Declare boxes [B, K, 4] of B images, which `points_and_corners` reads.

    K is 0 where there are only points, and 1 or P where there are both. The number of prompts is the larger of K and P.
    """
    value = graph.cached(_BOXES, lambda: graph.input(name, ("images", "boxes", 4)))
    points = graph.cached(_POINTS, undeclared)
    graph.cached(IMAGES, lambda: _dimension(graph, points, 0))
    graph.cached(PROMPTS, lambda: graph.op("Max", _dimension(graph, points, 1), _dimension(graph, value, 1)))
    return value


def points_and_corners(graph: Graph, context: Context) -> Value:
    """Return the points, corners and padding points of all Q prompts per image: [B * Q, N + 3, 2].

    Without boxes, there are N + 1 points per prompt.
    """
    points, value = (graph.cached(key, undeclared) for key in (_POINTS, _BOXES))
    images, prompts = (graph.cached(key, undeclared) for key in (IMAGES, PROMPTS))
    count = _dimension(graph, value, 1)
    # Where there is no box, an empty one takes its place until its corners are cut off: no operator makes Q of 0 boxes.
    missing = graph.op("Sub", graph.ints(1), graph.op("Min", count, graph.ints(1)))
    pads = graph.op("Concat", graph.ints(0, 0, 0, 0), missing, graph.ints(0), axis=0)
    some = graph.op("Pad", value, pads, graph.scalar(0.0))
    target = graph.op("Concat", images, graph.op("Max", count, graph.ints(1)), graph.ints(2, 2), axis=0)
    both = graph.op("Reshape", some, target)
    corners = graph.op("Slice", both, graph.ints(0), _corners(graph), graph.ints(2))
    parts = []
    for part in (points, corners):
        target = graph.op("Concat", images, prompts, _dimension(graph, part, 2), graph.ints(2), axis=0)
        parts.append(graph.op("Expand", part, target))
    return _pad_points(graph, _by_prompt(graph, graph.op("Concat", *parts, axis=2)))


def labels_and_corners(graph: Graph, context: Context) -> Value:
    """Return the labels that belong to `points_and_corners`, float32."""
    labels = _known_labels(graph, graph.cached(_LABELS, undeclared))
    corners = graph.op("Slice", graph.floats(2.0, 3.0), graph.ints(0), _corners(graph), graph.ints(0))
    images, prompts = (graph.cached(key, undeclared) for key in (IMAGES, PROMPTS))
    parts = []
    for part, count in ((labels, _dimension(graph, labels, 2)), (corners, _corners(graph))):
        parts.append(graph.op("Expand", part, graph.op("Concat", images, prompts, count, axis=0)))
    return _pad_labels(graph, _by_prompt(graph, graph.op("Concat", *parts, axis=2)))


def _corners(graph: Graph) -> Value:
    """Return the number of corners that each prompt has, 0 or 2, int64 [1]."""
    count = _dimension(graph, graph.cached(_BOXES, undeclared), 1)
    return graph.cached(
        ("corners",), lambda: graph.op("Mul", graph.op("Min", count, graph.ints(1)), graph.ints(2))
    )


def _known_labels(graph: Graph, labels: Value) -> Value:
    """Convert int64 labels to float32; those below -1 become -1."""
    return graph.op("Max", graph.op("Cast", labels, to=_FLOAT), graph.scalar(_PADDING_LABEL))


def _by_prompt(graph: Graph, values: Value) -> Value:
    """Reshape values [B, P, ...] to [B * P, ...]."""
    rest = graph.op("Slice", graph.op("Shape", values), graph.ints(2), graph.ints(_ALL))
    return graph.op("Reshape", values, graph.op("Concat", graph.ints(-1), rest, axis=0))


def _pad_points(graph: Graph, points: Value) -> Value:
    return graph.op("Pad", points, graph.ints(0, 0, 0, 0, 1, 0), graph.scalar(0.0))


def _pad_labels(graph: Graph, labels: Value) -> Value:
    return graph.op("Pad", labels, graph.ints(0, 0, 0, 1), graph.scalar(_PADDING_LABEL))


def _dimension(graph: Graph, value: Value, axis: int) -> Value:
    """Return a dimension of a tensor, int64 [1]."""
    shape = graph.cached(("shape", value), lambda: graph.op("Shape", value))
    return graph.cached(
        ("dimension", value, axis),
        lambda: graph.op("Slice", shape, graph.ints(axis), graph.ints(axis + 1)),
    )


def undeclared() -> Value:
    """Raise AssertionError: a value is read before the input that it comes from is declared."""
    raise AssertionError("points, labels and boxes are declared first, in this order")
