"""Shape inference of a file that is read sees no weights, and all shapes that it saw with them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from saqsam.export.onnx import reader
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.reader import read_onnx
from saqsam.export.onnx.sam.encoder import write_encoder
from saqsam.export.onnx.sam.encoder_attention import EncoderOptions
from saqsam.recipes.deployment import deployable
from saqsam.utils.errors import CheckpointError
from support.tiny_quantized import quantize_tiny, tiny_recipe


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}


def test_shapes_are_inferred_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph("encoder")
    write_encoder(graph, quantize_tiny(deployable(tiny_recipe(bits="w4a8"))), EncoderOptions())
    onnx.save(graph.model({}), tmp_path / "encoder.onnx")
    seen: list[onnx.ModelProto] = []
    checked = reader._check_sizes

    def record(model: onnx.ModelProto, path: Path) -> None:
        seen.append(model)
        checked(model, path)

    monkeypatch.setattr(reader, "_check_sizes", record)
    monkeypatch.setattr(reader, "_MAX_KEPT_BYTES", 64)
    model = read_onnx(tmp_path / "encoder.onnx")
    whole = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert shapes(seen[0]).items() >= shapes(whole).items()
    large = [tensor for tensor in seen[0].graph.initializer if len(tensor.raw_data) > 64]
    assert all(tensor.data_type in (TensorProto.INT64, TensorProto.INT32) for tensor in large)
    assert len(seen[0].graph.initializer) < len(model.graph.initializer)


def test_large_shapes_are_still_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_KEPT_BYTES", 0)
    graph = Graph("expand")
    given = graph.input("given", (1,))
    wide = graph.op("Expand", given, graph.constant(np.array([2**16, 2**16]), "shape"))
    graph.output(graph.op("Slice", wide, graph.ints(0, 0), graph.ints(1, 1)), "first", (1, 1))
    onnx.save(graph.model({}), tmp_path / "expand.onnx")
    with pytest.raises(CheckpointError, match=r"/Expand': expected at most .* elements, got the shape"):
        read_onnx(tmp_path / "expand.onnx")
