"""Parse and check untrusted ONNX files before a runtime opens them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto, helper

from saqsam.export.manifest import MAX_FILE_BYTES
from saqsam.utils.errors import CheckpointError, shorten, shorten_message

MAX_ELEMENTS = 2**31
"""Largest number of elements of a tensor, over its constant dimensions: ten times the logits of SAM-H's attention."""
_WEIGHT_TYPES = {
    *(TensorProto.FLOAT, TensorProto.FLOAT16),
    *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4),
}
_MAX_KEPT_BYTES = 2**12
"""Largest constant of these types that may be more than a weight, such as the factors of a resize."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that saqsam wrote.

    Raises:
        CheckpointError: The file is missing, too large, not ONNX, or has contents that saqsam never writes: tensors in
            other files, operators of other domains, subgraphs, functions, or tensors of more than `MAX_ELEMENTS`.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, got {size:,}")
    try:
        model = onnx.load(path, load_external_data=False)
    # The parser's exceptions have no common class.
    except Exception as error:
        raise CheckpointError(f"{path}: not an ONNX file: {shorten_message(error)}") from error
    _check_contents(model, path)
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(
            _without_weights(model), check_type=True, strict_mode=True, data_prop=True
        )
    # onnx raises exceptions of its own, of Python and of protobuf for a damaged graph.
    except Exception as error:
        raise CheckpointError(f"{path}: not a valid ONNX graph: {shorten_message(error)}") from error
    _check_sizes(inferred, path)
    return model


def _check_contents(model: onnx.ModelProto, path: Path) -> None:
    def refuse(content: str) -> CheckpointError:
        return CheckpointError(f"{path}: expected a graph of standard operators, found {content}")

    if model.functions:
        raise refuse("functions")
    if model.graph.sparse_initializer:
        raise refuse("sparse tensors")
    for node in model.graph.node:
        if node.domain:
            raise refuse(f"an operator of the domain {shorten(node.domain)}")
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                raise refuse(f"a subgraph in a node of type {shorten(node.op_type)}")
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise refuse(f"tensor {shorten(tensor.name)} stored in another file")


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with inputs in the place of weights.

    Shape inference copies whatever it gets several times. The values of weights do not matter to it; those of integers
    that may be shapes, axes or bounds do.
    """
    graph = model.graph
    inputs, constants = {value.name: value for value in graph.input}, []
    for tensor in graph.initializer:
        if tensor.data_type in _WEIGHT_TYPES and len(tensor.raw_data) > _MAX_KEPT_BYTES:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            inputs.setdefault(tensor.name, value)
        else:
            constants.append(tensor)
    return helper.make_model(
        helper.make_graph(
            graph.node,
            graph.name,
            list(inputs.values()),
            graph.output,
            constants,
            value_info=graph.value_info,
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def _check_sizes(model: onnx.ModelProto, path: Path) -> None:
    graph = model.graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        # A dimension that is not constant has the value 0.
        shapes[value.name] = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    for name, shape in shapes.items():
        if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise CheckpointError(
                f"{path}: tensor {shorten(name)}: expected at most {MAX_ELEMENTS:,} elements, "
                f"got the shape {shorten(shape)}"
            )
