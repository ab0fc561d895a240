"""Graphs in older operator sets compute the same, and name the least version of the runtime."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import SamModel
from transformers.activations import ACT2FN

from saqsam.export import check_export, export_model, read_manifest
from saqsam.export.formats import OPSETS
from saqsam.export.manifest import MANIFEST, manifest_hash
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.layers import activation
from saqsam.inference.predictor import Predictor
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from saqsam.utils.errors import CheckpointError
from support.tiny_quantized import quantize_tiny, tiny_data, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
LEAST = {17: "1.12", 18: "1.14", 19: "1.16", 20: "1.17", 21: "1.18"}


@pytest.fixture(scope="module")
def models() -> dict[str, SamModel]:
    return {
        "float": tiny_sam(),
        "w8a8": quantize_tiny(deployable(tiny_recipe(bits="w8a8"))),
        "w4a8": quantize_tiny(deployable(tiny_recipe(bits="w4a8"))),
    }


def logits(folder: Path, runtime: str | None = None) -> np.ndarray:
    predictor = Predictor(*load_runtime(folder, runtime, threads=1))
    predictor.set_image(tiny_data()[0].image)
    return predictor.predict(box=np.array([5, 6, 50, 40]), return_logits=True)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float", "w8a8"])
def test_all_opsets_compute_the_same(models: dict[str, SamModel], tmp_path: Path, kind: str) -> None:
    found = {}
    for opset in OPSETS:
        folder = tmp_path / str(opset)
        written = export_model(models[kind], tiny_processor(), folder, opset=opset)
        assert written.details == {"opset": opset, "requires": {"onnxruntime": LEAST[opset]}}
        for part in ("encoder", "decoder"):
            model = onnx.load(folder / f"{part}.onnx")
            assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
            assert model.ir_version == IR_VERSIONS[opset]
            onnx.checker.check_model(model, full_check=True)
        found[opset] = logits(folder)
    for opset, values in found.items():
        largest = np.abs(found[21]).max()
        # Codes on a border fall to either side.
        tolerance = 1e-4 if kind == "float" else 0.05
        assert np.abs(values - found[21]).mean() < tolerance * largest, opset
    np.testing.assert_allclose(logits(tmp_path / "17", "openvino"), found[17], atol=0.2 * largest)


def test_the_default_is_the_newest(models: dict[str, SamModel], tmp_path: Path) -> None:
    export_model(models["w8a8"], tiny_processor(), tmp_path / "default")
    export_model(models["w8a8"], tiny_processor(), tmp_path / "newest", opset=21)
    for name in ("encoder.onnx", "decoder.onnx", MANIFEST):
        assert (tmp_path / "default" / name).read_bytes() == (tmp_path / "newest" / name).read_bytes()


def test_weights_of_4_bits_need_opset_21(models: dict[str, SamModel], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights of up to 4 bits need opset 21, got 20"):
        export_model(models["w4a8"], tiny_processor(), tmp_path / "out", opset=20)
    assert not list(tmp_path.iterdir())
    written = export_model(models["w4a8"], tiny_processor(), tmp_path / "out")
    assert written.details == {"opset": 21, "requires": {"onnxruntime": "1.23"}}


@pytest.mark.parametrize("layout", ["osam", "transformers-js"])
def test_layouts_take_opsets(models: dict[str, SamModel], tmp_path: Path, layout: str) -> None:
    written = export_model(models["w8a8"], tiny_processor(), tmp_path / "out", layout=layout, opset=17)
    for name in written.files:
        model = onnx.load(tmp_path / "out" / name)
        assert model.opset_import[0].version == 17
        onnxruntime.InferenceSession(tmp_path / "out" / name, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu"])
def test_activations_are_exact(tmp_path: Path, opset: int, name: str) -> None:
    graph, module = Graph("activation", opset), ACT2FN[name]
    assert isinstance(module, nn.Module)
    graph.output(activation(graph, module, graph.input("x", (101,))), "y", (101,))
    onnx.save(graph.model({}), tmp_path / "activation.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "activation.onnx", providers=["CPUExecutionProvider"])
    values = torch.linspace(-6, 6, 101)
    (found,) = session.run(None, {"x": values.numpy()})
    np.testing.assert_allclose(found, module(values).numpy(), atol=2e-6)


@pytest.mark.parametrize(
    ("format", "opset", "words"),
    [
        ("onnx", 16, "opset: expected 17 to 21, got 16"),
        ("onnx", 22, "opset: expected 17 to 21, got 22"),
        ("openvino", 17, "opset: the format openvino has none, got 17"),
    ],
)
def test_other_opsets_are_refused(tmp_path: Path, format: str, opset: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_export(format, tmp_path / "out", opset=opset, overwrite=False)


def test_an_older_runtime_is_refused(
    models: dict[str, SamModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(models["w8a8"], tiny_processor(), tmp_path / "out", opset=18)
    monkeypatch.setattr(onnxruntime, "__version__", "1.13.1")
    with pytest.raises(
        ValueError, match=re.escape("needs onnxruntime 1.14 or newer, found 1.13.1")
    ) as caught:
        load_runtime(tmp_path / "out")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(onnxruntime, "__version__", "1.14.0+cu1")
    load_runtime(tmp_path / "out")


@pytest.mark.parametrize("requires", ["1.18", {"onnxruntime": 1.18}, {"onnxruntime": "newest"}, []])
def test_versions_that_are_none_are_refused(
    models: dict[str, SamModel], tmp_path: Path, requires: object
) -> None:
    export_model(models["float"], tiny_processor(), tmp_path / "out")
    raw = json.loads((tmp_path / "out" / MANIFEST).read_text())
    raw["details"]["requires"] = requires
    raw["sha256"] = manifest_hash(raw)
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(raw))
    read_manifest(tmp_path / "out")
    with pytest.raises(CheckpointError, match="details: requires: expected versions, got"):
        load_runtime(tmp_path / "out")
