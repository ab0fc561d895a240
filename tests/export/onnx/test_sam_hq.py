"""ONNX graphs of SAM-HQ compute what torch computes, in ONNX Runtime and OpenVINO."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor
from transformers import SamHQModel

from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.export.exporter import export_model
from saqsam.export.manifest import read_manifest
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.writers import graph_writer
from saqsam.export.packed import ExportError
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.sam_hq.family import SamHQFamily
from saqsam.ptq.pipeline import quantize
from saqsam.recipes.deployment import deployable
from saqsam.runtimes.inputs import decoder_inputs
from saqsam.runtimes.onnxruntime import session as onnxruntime_session
from saqsam.runtimes.registry import RUNTIMES
from saqsam.verification.parity import TorchReference, compare_with_torch
from support.tiny_quantized import mixed_recipe, tiny_data, tiny_recipe
from support.tiny_sam import tiny_pixels
from support.tiny_sam_hq import tiny_sam_hq, tiny_sam_hq_processor

CHAOS = 0.05
"""A value at the border of two codes falls to either side by its last bits, and later layers see another code."""
BOXES = torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0], [1.0, 20.0, 33.0, 63.0]])
POINTS = torch.tensor([[[30.0, 20.0], [5.0, 60.0]], [[0.0, 0.0], [63.0, 63.0]], [[7.0, 8.0], [9.0, 10.0]]])
LABELS = torch.tensor([[1, 0], [0, 1], [1, 1]])
MASKS = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(3))
PROMPTS = {
    "boxes": Prompts(boxes=BOXES),
    "points": Prompts(points=POINTS, labels=LABELS),
    "boxes and masks": Prompts(boxes=BOXES, mask_inputs=MASKS),
}
RECIPES = {
    "w8a8": deployable(tiny_recipe("mse", "w8a8")),
    "w4a8": deployable(tiny_recipe("saq-sam-plus", "w4a8")),
    "w4a4": deployable(tiny_recipe("mse", "w4a4")),
    "mixed": replace(deployable(mixed_recipe()), extra=mixed_recipe().extra),
}


@functools.cache
def model_of(name: str) -> SamHQModel:
    if name == "float":
        model = tiny_sam_hq()
        prepare(model, plan_quantization(model.config, tiny_recipe()))
        return model
    return quantize(tiny_sam_hq(), tiny_sam_hq_processor(), RECIPES[name], tiny_data()).model


def written(model: SamHQModel, part: str, *, single_mask: bool = False) -> onnx.ModelProto:
    graph, writer = Graph(part), graph_writer(model.config)
    if part == "encoder":
        writer.write_encoder(graph, model)
    else:
        writer.write_decoder(graph, model, single_mask=single_mask)
    return graph.model({})


def relative(found: np.ndarray, wanted: Tensor) -> float:
    return float(np.linalg.norm(found - wanted.numpy()) / np.linalg.norm(wanted.numpy()))


@torch.inference_mode()
def encode(model: SamHQModel) -> Features:
    return TorchBackend(model).encode(tiny_pixels())


@pytest.mark.parametrize("name", ["float", *RECIPES])
def test_the_encoder_is_torchs(name: str) -> None:
    session = onnxruntime_session(written(model_of(name), "encoder").SerializeToString(), threads=1)
    assert [value.name for value in session.get_outputs()] == ["image_embeddings", "hq_features"]
    found = session.run(None, {"pixel_values": tiny_pixels().numpy()})
    for array, expected in zip(found, encode(model_of(name)).maps, strict=True):
        assert array.shape == tuple(expected.shape)
        assert relative(array, expected) < (1e-5 if name == "float" else CHAOS)


@torch.no_grad()  # models are made within; learning could not use tensors of inference mode
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("name", ["float", *RECIPES])
def test_the_decoder_is_torchs(name: str, prompts: str) -> None:
    model = model_of(name)
    features = encode(model)
    names = SamHQFamily().input_spec(model.config).features
    maps = {key: tensor.numpy() for key, tensor in zip(names, features.maps, strict=True)}
    inputs = decoder_inputs(maps, PROMPTS[prompts]) | {"orig_im_size": np.array([48, 64], np.float32)}
    session = onnxruntime_session(written(model, "decoder").SerializeToString(), threads=1)
    large, ious, low = session.run(None, inputs)
    assert (large.shape, ious.shape, low.shape) == ((3, 4, 48, 64), (3, 4), (3, 4, 32, 32))
    for multimask in (True, False):
        expected = TorchBackend(model).decode(features, PROMPTS[prompts], multimask)
        chosen = SamHQFamily().select_masks(
            model.config, torch.from_numpy(low), torch.from_numpy(ious), multimask
        )
        for one, other in zip(chosen, expected, strict=True):
            assert relative(one.numpy(), other) < (1e-5 if name == "float" else CHAOS)


@pytest.mark.parametrize("single_mask", [False, True])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w4a4"])
def test_exports_are_torchs(name: str, format: str, single_mask: bool, tmp_path: Path) -> None:
    model, processor = model_of(name), tiny_sam_hq_processor()
    export_model(model, processor, tmp_path / "out", format=format, single_mask=single_mask)
    runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[format]
    manifest = read_manifest(tmp_path / "out")
    backend: Backend = RUNTIMES[runtime].load_backend()(tmp_path / "out", manifest, threads=1)
    reference = TorchReference(model, processor, tiny_data(), single_mask=single_mask)
    parity = compare_with_torch(backend, processor, reference)
    differences = {tensor.name: tensor.relative for tensor in parity.tensors}
    assert differences.keys() == {"image_embeddings", "hq_features", "low_res_masks", "iou_predictions"}
    assert max(differences.values()) < CHAOS
    assert parity.decided_iou > 0.98


def test_weights_of_the_high_quality_mask_are_stored_as_codes() -> None:
    model = model_of("mixed")
    for part, names in (("encoder", ("encoder", "compress_vit")), ("decoder", ("mask_conv1", "mask_conv2"))):
        stored = {tensor.name: tensor.data_type for tensor in written(model, part).graph.initializer}
        for name in names:
            kinds = {kind for key, kind in stored.items() if f"/{name}/" in key and "weight" in key}
            assert kinds & {TensorProto.INT8, TensorProto.UINT8}, (name, kinds)


def test_executorch_refuses_by_name(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    with pytest.raises(ExportError, match="SAM-HQ models cannot be exported to ExecuTorch yet"):
        export_model(model_of("w8a8"), tiny_sam_hq_processor(), tmp_path / "out", format="executorch")
