"""Build an ONNX graph node by node: names, constants, and patterns that all graphs share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from saqsam.export.formats import OPSETS
from saqsam.export.manifest import MAX_FILE_BYTES
from saqsam.export.packed import ExportError

OPSET = OPSETS[-1]
"""Default operator set."""
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
"""ONNX IR version by operator set; runtimes that support the set may refuse a newer IR."""
_REDUCE_MAX_AXES, _SPLIT_COUNT, _GELU, _NIBBLES = 18, 18, 20, 21
"""First operator sets with axes as an input of ReduceMax, a count in Split, Gelu, and 4-bit integers."""

_MAX_WEIGHT_BYTES = MAX_FILE_BYTES - 2**24
"""Largest total of the initializers, in bytes; the nodes take what remains of an ONNX file."""

_NAMELESS = {
    *("QuantizeLinear", "DequantizeLinear", "Cast"),
    *("Reshape", "Transpose", "Unsqueeze", "Slice", "Shape", "Gather", "Concat"),
}
"""Operators whose nodes are unnamed to save space: their outputs have the same names, and no profile needs them."""

Value = str
"""Name of a tensor in the graph."""


class Graph:
    """An ONNX graph under construction.

    Args:
        name: Name of the graph.
        opset: ONNX operator set.

    Attributes:
        has_nibbles: Whether it has 4-bit weights.

    Raises:
        ExportError: A constant is added beyond the size of an ONNX file, or one that the operator set has no type for.
    """

    def __init__(self, name: str, opset: int = OPSET) -> None:
        self.name, self.opset = name, opset
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._bytes = 0
        self.has_nibbles = False
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._cache: dict[tuple[Any, ...], Value] = {}
        self._taken: set[str] = set()
        self._scope: list[str] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of all nodes and tensors that are added in the block with `name`."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def input(self, name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> Value:
        """Declare an input. String dimensions are dynamic."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        self._taken.add(name)
        return name

    def output(
        self, value: Value, name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT
    ) -> None:
        """Declare an output. String dimensions are dynamic."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def shape_of(self, name: str) -> tuple[int | str, ...]:
        """Return the shape of an input or output that was declared; dynamic dimensions are strings."""
        info = next(value for value in (*self._inputs, *self._outputs) if value.name == name)
        return tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim)

    def include(
        self, other: Graph, inputs: Mapping[str, Value], outputs: AbstractSet[str]
    ) -> dict[str, Value]:
        """Add the nodes of another graph that compute some of its outputs.

        Args:
            other: A finished graph, whose names below its inputs and outputs this graph does not have. It shares its
                initializers with this graph.
            inputs: Values of this graph by the inputs of the other one that its nodes read.
            outputs: Names of outputs of the other graph.

        Returns:
            Values of the outputs by name.
        """
        needed, kept = set(outputs), []
        for node in reversed(other._nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(name for name in node.input if name)
        values = dict(inputs)
        for node in reversed(kept):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [values.get(name, name) for name in node.input]
            if node.output[0] in outputs:  # the Identity of `output`
                values[node.output[0]] = copy.input[0]
            else:
                self._nodes.append(copy)
        for name in needed & other._initializers.keys():
            self._initializers[name] = other._initializers[name]
        self._taken |= other._taken
        return {name: values[name] for name in outputs}

    def op(self, kind: str, *inputs: Value, name: str | None = None, **attributes: Any) -> Value:
        """Add a node with one output. An empty string omits an optional input."""
        return self.ops(kind, 1, *inputs, name=name, **attributes)[0]

    def ops(
        self, kind: str, outputs: int, *inputs: Value, name: str | None = None, **attributes: Any
    ) -> list[Value]:
        """Add a node with several outputs."""
        path = self._unique(name or kind)
        names = [path] if outputs == 1 else [self._unique_path(f"{path}_{i}") for i in range(outputs)]
        shown = "" if kind in _NAMELESS else path
        self._nodes.append(helper.make_node(kind, inputs, names, name=shown, **attributes))
        return names

    def maximum(self, value: Value, *axes: int, keepdims: bool) -> Value:
        """Add the maximum along some axes."""
        if self.opset < _REDUCE_MAX_AXES:
            return self.op("ReduceMax", value, axes=axes, keepdims=int(keepdims))
        return self.op("ReduceMax", value, self.ints(*axes), keepdims=int(keepdims))

    def split(self, value: Value, count: int, axis: int) -> list[Value]:
        """Split a tensor into equal parts along an axis."""
        counted: dict[str, Any] = {"num_outputs": count} if self.opset >= _SPLIT_COUNT else {}
        return self.ops("Split", count, value, axis=axis, **counted)

    def gelu(self, value: Value, *, approximate: bool) -> Value:
        """Add a GELU, or its approximation by a hyperbolic tangent."""
        if self.opset >= _GELU:
            return self.op("Gelu", value, **({"approximate": "tanh"} if approximate else {}))
        if approximate:
            cube = self.op("Mul", self.op("Mul", value, value), value)
            inner = self.op("Add", value, self.op("Mul", cube, self.scalar(0.044715)))
            wave = self.op("Tanh", self.op("Mul", inner, self.scalar(math.sqrt(2 / math.pi))))
        else:
            wave = self.op("Erf", self.op("Div", value, self.scalar(math.sqrt(2))))
        # In this order: runtimes look for it to fuse the nodes again.
        doubled = self.op("Mul", value, self.op("Add", wave, self.scalar(1.0)))
        return self.op("Mul", doubled, self.scalar(0.5))

    def constant(self, values: Any, name: str = "constant", *, shared: bool = True) -> Value:
        """Add an initializer with the dtype of `values`; equal `shared` ones are stored once."""
        array = np.asarray(values)
        if not shared:
            return self._initializer(numpy_helper.from_array(array), name)
        # A digest, because the cache would keep a second copy of every weight.
        key = (array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).data).digest())
        if key not in self._cache:
            self._cache[key] = self._initializer(numpy_helper.from_array(array), name)
        return self._cache[key]

    def ints(self, *values: int) -> Value:
        """Add a constant int64 [n], such as a shape, axes or the bounds of a slice."""
        return self.constant(np.array(values, dtype=np.int64), "ints")

    def scalar(self, value: float) -> Value:
        """Add a constant float32 []."""
        return self.constant(np.array(value, dtype=np.float32), "scalar")

    def floats(self, *values: float) -> Value:
        """Add a constant float32 [n]."""
        return self.constant(np.array(values, dtype=np.float32), "floats")

    def parameter(self, values: torch.Tensor, name: str) -> Value:
        """Add a float32 constant, which is stored in float16, as in a checkpoint, if that is lossless."""
        array = values.detach().float().cpu().contiguous().numpy()
        half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            return self.constant(array, name)
        key = ("half", array.shape, hashlib.sha256(half.data).digest())
        if key not in self._cache:
            stored = self.constant(half, name)
            self._cache[key] = self.folded("Cast", stored, name=f"{name}_float", to=TensorProto.FLOAT)
        return self._cache[key]

    def signed_bytes(self, codes: NDArray[Any], zero_points: NDArray[Any], bits: int, *, name: str) -> Value:
        """Add codes [K, C] minus the zero points [C] of their columns as int8, stored in 4 bits if they fit.

        Runtimes fold the cast and the subtraction when they load the graph, so that kernels see bytes without zero
        points.
        """
        if bits > 4:
            return self.constant((codes - zero_points).astype(np.int8), name)
        middle = 2 ** (bits - 1)
        is_signed = bool((zero_points == middle).all())
        kind = TensorProto.INT4 if is_signed else TensorProto.UINT4
        stored = self._nibbles(codes - middle if is_signed else codes, kind, name)
        if is_signed:
            return self.folded("Cast", stored, name=f"{name}_wide", to=TensorProto.INT8)
        # In int32, for which every runtime implements Sub.
        wide = self.folded("Cast", stored, name=f"{name}_wide", to=TensorProto.INT32)
        zeros = self._nibbles(zero_points, TensorProto.UINT4, f"{name}_zero")
        zeros = self.folded("Cast", zeros, name=f"{name}_zero_wide", to=TensorProto.INT32)
        signed = self.folded("Sub", wide, zeros, name=f"{name}_signed")
        return self.folded("Cast", signed, name=f"{name}_byte", to=TensorProto.INT8)

    def unsigned_bytes(self, codes: NDArray[Any], bits: int, *, name: str) -> Value:
        """Add codes as uint8, stored in 4 bits if they fit."""
        if bits > 4:
            return self.constant(codes.astype(np.uint8), name)
        stored = self._nibbles(codes, TensorProto.UINT4, name)
        return self.folded("Cast", stored, name=f"{name}_wide", to=TensorProto.UINT8)

    def folded(self, kind: str, *inputs: Value, name: str, **attributes: Any) -> Value:
        """Add an unnamed node whose inputs are constants, which runtimes fold when they load the graph."""
        output = self._unique(name)
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _nibbles(self, codes: NDArray[Any], kind: int, name: str) -> Value:
        if self.opset < _NIBBLES:
            raise ExportError(
                f"{self.name}: weights of up to 4 bits need opset {_NIBBLES}, got {self.opset}: choose that opset, or "
                "quantize weights to 8 bits"
            )
        self.has_nibbles = True
        tensor = helper.make_tensor(name, kind, codes.shape, _pack_nibbles(codes), raw=True)
        return self._initializer(tensor, name)

    def cached(self, key: tuple[Any, ...], make: Callable[[], Value]) -> Value:
        """Return the cached value of a key; call `make` to add it the first time."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def _initializer(self, tensor: onnx.TensorProto, name: str) -> Value:
        path = self._unique(name)
        tensor.name = path
        self._bytes += len(tensor.raw_data)
        if self._bytes > _MAX_WEIGHT_BYTES:
            raise ExportError(
                f"{self.name}: ONNX files hold at most 2 GiB of weights, this model has more in float32: quantize it "
                "first (saqsam quantize ... --deploy)"
            )
        self._initializers[path] = tensor
        return path

    def _unique(self, name: str) -> str:
        return self._unique_path("/".join(["", *self._scope, name]))

    def _unique_path(self, base: str) -> str:
        path, number = base, 1
        while path in self._taken:
            number += 1
            path = f"{base}_{number}"
        self._taken.add(path)
        return path

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """Return the finished model, after a check by `onnx.checker`."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=_IR_VERSIONS[self.opset],
            producer_name="saqsam",
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model


def _pack_nibbles(codes: NDArray[Any]) -> bytes:
    """Pack two 4-bit values into each byte, the first in the low half, as ONNX stores INT4 and UINT4."""
    # Two's complement in one byte has the same low half as in two.
    flat = codes.astype(np.uint8, order="C").ravel() & 0xF
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] | (flat[1::2] << 4)).tobytes()
