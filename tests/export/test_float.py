"""Float models as files for other runtimes: float32 graphs that compute torch's masks."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import SamModel

import saqsam
from saqsam.export import export_model, read_manifest
from saqsam.export.formats import FormatEntry
from saqsam.export.onnx import graph
from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from saqsam.runtimes import load_runtime
from saqsam.verification.parity import TorchReference, compare_with_torch
from support.tiny_quantized import tiny_data
from support.tiny_sam import tiny_processor, tiny_sam

RUNS = (("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino"))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float tiny SAM in each format, to be changed by no test."""
    root = tmp_path_factory.mktemp("exports")
    for format in ("onnx", "openvino"):
        export_model(tiny_sam(), tiny_processor(), root / format, format=format)
    return {format: root / format for format in ("onnx", "openvino")}


@pytest.mark.parametrize(("format", "runtime"), RUNS)
def test_runtimes_compute_torchs_masks(exports: dict[str, Path], format: str, runtime: str) -> None:
    backend, processor = load_runtime(exports[format], runtime, threads=1)
    parity = compare_with_torch(
        backend, processor, TorchReference(tiny_sam(), tiny_processor(), tiny_data(2))
    )
    assert {tensor.name for tensor in parity.tensors} == {
        *("image_embeddings", "low_res_masks", "iou_predictions")
    }
    assert all(tensor.relative < 1e-5 for tensor in parity.tensors)
    assert parity.mask_iou > 0.9999
    assert parity.decided_iou == 1


@pytest.mark.parametrize(("format", "runtime"), RUNS)
@pytest.mark.parametrize("kind", ["point", "both", "mask"])
def test_every_prompt_gives_torchs_logits(
    exports: dict[str, Path], format: str, runtime: str, kind: str
) -> None:
    box, point = np.array([5, 6, 50, 40]), np.array([[20.0, 30.0]])
    prompt = {
        "point": {"point_coords": point, "point_labels": np.array([1])},
        "both": {"box": box, "point_coords": point, "point_labels": np.array([0])},
        "mask": {"box": box, "mask_input": np.linspace(-3, 3, 32 * 32).reshape(1, 32, 32)},
    }[kind]
    found = []
    for backend, processor in (
        load_runtime(exports[format], runtime, threads=1),
        (TorchBackend(tiny_sam()), tiny_processor()),
    ):
        predictor = Predictor(backend, processor)
        predictor.set_image(tiny_data()[0].image)
        found.append(predictor.predict(**prompt, multimask_output=True, return_logits=True))
    for mine, torchs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, torchs, atol=1e-4 * np.abs(torchs).max())


def test_an_export_scores_as_the_model(exports: dict[str, Path]) -> None:
    scores = [
        saqsam.evaluate(model, processor, tiny_data(2)).metrics["prompt"]["miou"]
        for model, processor in (load_runtime(exports["onnx"], threads=1), (tiny_sam(), tiny_processor()))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_the_manifest_says_float(exports: dict[str, Path], tmp_path: Path) -> None:
    found = read_manifest(exports["onnx"])
    assert (found.name, found.recipe) == ("float", None)
    assert found.checkpoint == read_manifest(exports["openvino"]).checkpoint
    other = export_model(tiny_sam(seed=1), tiny_processor(), tmp_path / "other")
    assert other.checkpoint != found.checkpoint
    stored = {entry.key: entry.value for entry in onnx.load(exports["onnx"] / "encoder.onnx").metadata_props}
    assert stored == {"saqsam_checkpoint": found.checkpoint}


def test_the_graphs_are_float32(exports: dict[str, Path]) -> None:
    for part in ("encoder", "decoder"):
        model = onnx.load(exports["onnx"] / f"{part}.onnx")
        kinds = Counter(node.op_type for node in model.graph.node)
        assert not kinds["QuantizeLinear"] + kinds["DequantizeLinear"]
        assert kinds["Gemm"] > 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_any_dtype_are_exported_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    def encoder(model: SamModel, name: str) -> onnx.GraphProto:
        export_model(model, tiny_processor(), tmp_path / name)
        return onnx.load(tmp_path / name / "encoder.onnx").graph

    half = tiny_sam().to(dtype)
    found, expected = encoder(half, "half"), encoder(tiny_sam().to(dtype).float(), "float")
    assert found == expected


def test_a_dequantized_model_is_exported(tiny: Path, tmp_path: Path) -> None:
    config = saqsam.SaqsamConfig(weight_only="w4")
    model = SamModel.from_pretrained(tiny, quantization_config=config).dequantize()
    assert export_model(model, tiny_processor(), tmp_path / "out").name == "float"


def test_formats_of_integer_kernels_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FormatEntry, "missing_packages", lambda _: [])
    with pytest.raises(ValueError, match=r"is float, and executorch takes quantized.*onnx, openvino"):
        export_model(tiny_sam(), tiny_processor(), tmp_path / "out", format="executorch")
    assert not list(tmp_path.iterdir())


def test_weights_beyond_an_onnx_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_MAX_WEIGHT_BYTES", 50_000)
    with pytest.raises(ValueError, match=r"encoder: ONNX files hold at most 2 GiB.*quantize it first"):
        export_model(tiny_sam(), tiny_processor(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
