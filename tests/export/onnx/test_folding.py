"""4-bit weights are folded to the bytes that ONNX Runtime computes from them, and nothing else is touched."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from saqsam.export.onnx.folding import fold_weights
from saqsam.export.onnx.graph import Graph, Value
from saqsam.runtimes.onnxruntime import session


def weighted(codes: np.ndarray, zero_points: np.ndarray, *, shared: bool = False) -> onnx.ModelProto:
    """A graph that adds unpacked weights to its input; with `shared`, the widened codes are an output too."""
    graph = Graph("weights")
    given = graph.input("given", codes.shape)
    signed = graph.signed_bytes(codes, zero_points, 4, name="weight")

    def as_float(value: Value) -> Value:
        return graph.op("Cast", value, to=TensorProto.FLOAT)

    graph.output(graph.op("Add", given, as_float(signed)), "sum", codes.shape)
    if shared:
        graph.output(as_float("/weight_wide"), "codes", codes.shape)
    return graph.model({})


def computed(model: onnx.ModelProto, shape: tuple[int, ...]) -> list[np.ndarray]:
    content = model.SerializeToString()
    return list(session(content, 1, optimized=False).run(None, {"given": np.zeros(shape, np.float32)}))


@pytest.mark.parametrize("shape", [(16, 6), (5, 3), (1, 1)])
def test_folded_weights_are_those_that_the_graph_computes(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    codes, zeros = generator.integers(0, 16, shape), generator.integers(0, 8, shape[1])
    model = weighted(codes.astype(np.int16), zeros.astype(np.int16))
    (expected,) = computed(model, shape)
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 4
    fold_weights(model)
    onnx.checker.check_model(model, full_check=True)
    assert Counter(node.op_type for node in model.graph.node) == {"Cast": 1, "Add": 1, "Identity": 1}
    (weight,) = (t for t in model.graph.initializer if t.data_type == TensorProto.INT8)
    np.testing.assert_array_equal(numpy_helper.to_array(weight), codes - zeros)
    np.testing.assert_array_equal(computed(model, shape)[0], expected)


def test_weights_whose_parts_are_read_twice_stay() -> None:
    codes = np.arange(12, dtype=np.int16).reshape(4, 3)
    model = weighted(codes, np.array([1, 2, 3], dtype=np.int16), shared=True)
    before = model.SerializeToString()
    fold_weights(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("dims", [[3], [1, 1, 3]])
def test_zero_points_that_widen_a_weight_stay(dims: list[int]) -> None:
    model = weighted(np.ones((2, 3 if len(dims) > 1 else 1), np.int16), np.array([1], np.int16))
    (zero,) = (tensor for tensor in model.graph.initializer if tensor.name == "/weight_zero")
    zero.dims[:], zero.raw_data = dims, b"\x21\x03"
    before = model.SerializeToString()
    fold_weights(model)
    assert model.SerializeToString() == before
