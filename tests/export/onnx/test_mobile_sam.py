"""MobileSAM as ONNX: encoder and decoder compute what torch computes, in both runtimes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import saqsam
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.export import export_model
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.mobile_sam.writer import MobileSamGraphWriter
from saqsam.export.packed import ExportError
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.recipes.deployment import deployable
from saqsam.recipes.specs import ProbabilitySpec
from saqsam.runtimes import load_runtime
from saqsam.runtimes.inputs import decoder_inputs
from saqsam.runtimes.onnxruntime import session as onnxruntime_session
from saqsam.verification.divergence import find_divergence
from saqsam.verification.parity import TorchReference, compare_with_torch
from support.tiny_mobile_quantized import mobile_processor, quantize_mobile
from support.tiny_mobile_sam import pixels, tiny_config, tiny_mobile_sam
from support.tiny_quantized import tiny_data, tiny_recipe

BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 127.0, 127.0], [40.0, 30.0, 60.0, 80.0]])
POINTS, LABELS = torch.tensor([[[30.0, 40.0], [90.0, 20.0]]] * 3), torch.tensor([[1, 0]] * 3)
PROMPTS = {
    "boxes": Prompts(boxes=BOXES),
    "points and boxes": Prompts(points=POINTS, labels=LABELS, boxes=BOXES),
}
CHAOS = 0.05
"""See `test_onnx.CHAOS`."""
LAYOUT = {"float": 1e-5}
WRITER = MobileSamGraphWriter()


def deployed(bits: str, method: str = "min-max", **changes: Any) -> MobileSamModel:
    recipe = deployable(tiny_recipe(method, bits))
    return quantize_mobile(dataclasses.replace(recipe, **changes)).model


@pytest.fixture(scope="module")
def models() -> dict[str, MobileSamModel]:
    plain = tiny_mobile_sam()
    prepare(plain, plan_quantization(plain.config, tiny_recipe()))
    return {
        "float": plain,
        "w8a8": deployed("w8a8"),
        "w8a8, products": deployed("w8a8", encoder_products="quantized"),
        "w8a8, tensor probabilities": deployed(
            "w8a8", encoder_products="quantized", probabilities=ProbabilitySpec("uniform", 8)
        ),
        "w4a8, input scales": deployed("w4a8", "saq-sam-plus"),
    }


NAMES = ("float", "w8a8", "w8a8, products", "w8a8, tensor probabilities", "w4a8, input scales")


def run(part: str, model: MobileSamModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    graph = Graph(part)
    if part == "encoder":
        WRITER.write_encoder(graph, model)
    else:
        WRITER.write_decoder(graph, model, single_mask=False)
    file: onnx.ModelProto = graph.model({})
    session = onnxruntime_session(file.SerializeToString(), threads=1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def relative(found: np.ndarray, wanted: torch.Tensor) -> float:
    return float(np.linalg.norm(found - wanted.numpy()) / np.linalg.norm(wanted.numpy()))


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_is_torchs(models: dict[str, MobileSamModel], name: str) -> None:
    model = models[name]
    wanted = TorchBackend(model).encode(pixels()).embedding
    (found,) = run("encoder", model, {"pixel_values": pixels().numpy()}).values()
    assert found.shape == (1, 32, 8, 8)
    assert relative(found, wanted) < LAYOUT.get(name, CHAOS)


@torch.inference_mode()
@pytest.mark.parametrize("windows", [(7, 8, 4, 8), (7, 7, 14, 7)], ids=["unpadded", "published"])
@pytest.mark.parametrize("strides", [(2, 2, 1), (2, 1, 2)], ids=["published", "other strides"])
def test_windows_and_strides_of_any_size(windows: tuple[int, ...], strides: tuple[int, ...]) -> None:
    config = tiny_config(window_sizes=list(windows), merge_strides=list(strides))
    model = tiny_mobile_sam(1, config)
    prepare(model, plan_quantization(config, tiny_recipe()))
    (found,) = run("encoder", model, {"pixel_values": pixels().numpy()}).values()
    assert relative(found, TorchBackend(model).encode(pixels()).embedding) < LAYOUT["float"]


@torch.inference_mode()
@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("name", ["float", "w8a8"])
def test_any_number_of_images_and_older_operator_sets(
    models: dict[str, MobileSamModel], name: str, opset: int
) -> None:
    graph = Graph("encoder", opset)
    WRITER.write_encoder(graph, models[name], free_batch=True)
    session = onnxruntime_session(graph.model({}).SerializeToString(), threads=1)
    (together,) = session.run(None, {"pixel_values": pixels(3).numpy()})
    assert relative(together, TorchBackend(models[name]).encode(pixels(3)).embedding) < LAYOUT.get(
        name, CHAOS
    )
    for index in range(3):
        (alone,) = session.run(None, {"pixel_values": pixels(3)[index : index + 1].numpy()})
        np.testing.assert_allclose(alone[0], together[index], atol=1e-4 * np.abs(alone).max())


def test_a_float_model_is_exported(tmp_path: Path) -> None:
    model = tiny_mobile_sam()
    export_model(model, mobile_processor(), tmp_path / "export")
    backend, _ = load_runtime(tmp_path / "export", "onnxruntime", threads=1)
    torch.testing.assert_close(
        backend.encode(pixels()).embedding,
        TorchBackend(model).encode(pixels()).embedding,
        rtol=1e-4,
        atol=1e-4,
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", ["float", "w8a8", "w4a8, input scales"])
@pytest.mark.parametrize("prompts", PROMPTS)
def test_the_decoder_is_torchs(models: dict[str, MobileSamModel], name: str, prompts: str) -> None:
    backend = TorchBackend(models[name])
    features = backend.encode(pixels())
    maps = {"image_embeddings": features.embedding.numpy()}
    size = np.array([50.0, 80.0], dtype=np.float32)
    inputs = {**decoder_inputs(maps, PROMPTS[prompts]), "orig_im_size": size}
    found = run("decoder", models[name], inputs)
    logits, ious = backend.decode(features, PROMPTS[prompts], True)
    assert relative(found["low_res_masks"][:, 1:], logits) < LAYOUT.get(name, CHAOS)
    assert relative(found["iou_predictions"][:, 1:], ious) < LAYOUT.get(name, CHAOS)
    assert found["masks"].shape == (3, 4, 50, 80)


def test_w4a4_runs_after_the_same_changes_as_sam_v1() -> None:
    recipe = dataclasses.replace(
        tiny_recipe("mse", "w4a4"),
        integer_biases=True,
        probabilities=ProbabilitySpec("uniform", 8, scale="row"),
    )
    model = quantize_mobile(recipe).model
    with torch.inference_mode():
        wanted = TorchBackend(model).encode(pixels()).embedding
    (found,) = run("encoder", model, {"pixel_values": pixels().numpy()}).values()
    # A code of 4 bits is sixteen times as coarse as one of 8.
    assert relative(found, wanted) < 4 * CHAOS
    with pytest.raises(ExportError, match="integer kernels add biases that are multiples"):
        run("encoder", quantize_mobile(tiny_recipe("saq-sam", "w4a4")).model, {})


def test_depthwise_convolutions_are_all_that_runs_in_float(models: dict[str, MobileSamModel]) -> None:
    graph = Graph("encoder")
    WRITER.write_encoder(graph, models["w4a8, input scales"])
    nodes = graph.model({}).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) == 2 + 4 + 4  # patch embedding, separable convolutions, local convolutions
    producers = {name: node for node in nodes for name in node.output}
    products = [node for node in nodes if node.op_type == "Gemm"]
    assert len(products) == 4 * 2 + 4 * 6 + 2  # queries, keys and values of a block are apart
    for node in products:
        assert {producers[name].op_type for name in node.input} == {"DequantizeLinear"}, node.name


@pytest.mark.slow
@pytest.mark.parametrize(("format", "runtime"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_an_export_predicts_what_its_checkpoint_predicts(
    tmp_path: Path, format: str, runtime: str, bits: str
) -> None:
    result = quantize_mobile(deployable(tiny_recipe("mse", bits)))
    result.save(tmp_path / "checkpoint")
    model, processor = saqsam.load(tmp_path / "checkpoint")
    export_model(model, processor, tmp_path / "export", format=format)
    backend, own_processor = load_runtime(tmp_path / "export", runtime, threads=1)
    parity = compare_with_torch(backend, own_processor, TorchReference(model, processor, tiny_data(2)))
    assert all(tensor.relative < CHAOS for tensor in parity.tensors)
    assert parity.mask_iou > 0.9


@pytest.mark.slow
def test_the_first_node_that_differs_is_found(tmp_path: Path) -> None:
    model = deployed("w8a8")
    export_model(model, mobile_processor(), tmp_path / "export", format="onnx")
    backend, _ = load_runtime(tmp_path / "export", "onnxruntime", threads=1)
    with torch.no_grad():
        model.vision_encoder.layers[1].downsample.depthwise_conv.weight.mul_(-2)
    manifest = saqsam.export.read_manifest(tmp_path / "export")
    found = find_divergence(
        tmp_path / "export", backend, manifest, "onnxruntime", model, pixels(), PROMPTS["boxes"]
    )
    assert found.part == "encoder"
    assert found.node is not None
    assert "layers.1.downsample" in found.node
