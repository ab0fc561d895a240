"""SAM 2 as ONNX: encoder and decoder compute what torch computes, in both runtimes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import Sam2Model

import saqsam
from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.export import export_model
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam2.decoder import write_decoder
from saqsam.export.onnx.sam2.encoder import write_encoder
from saqsam.inference.backend import TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.registry import family_of
from saqsam.ptq.pipeline import quantize
from saqsam.recipes.deployment import deployable
from saqsam.recipes.recipe import Recipe
from saqsam.runtimes.inputs import decoder_inputs
from saqsam.runtimes.loading import load_runtime
from saqsam.runtimes.onnxruntime import session as onnxruntime_session
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam2 import tiny_sam2, tiny_sam2_config, tiny_sam2_pixels, tiny_sam2_processor

BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 127.0, 127.0], [40.0, 30.0, 60.0, 80.0]])
POINTS, LABELS = torch.tensor([[[30.0, 40.0], [90.0, 20.0]]] * 3), torch.tensor([[1, 0]] * 3)
PROMPTS = {
    "boxes": Prompts(boxes=BOXES),
    "points": Prompts(points=POINTS, labels=LABELS),
    "points and boxes": Prompts(points=POINTS, labels=LABELS, boxes=BOXES),
    "boxes and masks": Prompts(
        boxes=BOXES, mask_inputs=torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(3))
    ),
}
NAMES = ("float", "w8a8", "w4a8, input scales", "w4a8, float products")
TOLERANCE = {"float": 1e-5}
CHAOS = 0.05
"""See `test_onnx.CHAOS`."""


def quantized(recipe: Recipe) -> Sam2Model:
    return quantize(tiny_sam2(), tiny_sam2_processor(), recipe, tiny_data()).model


@pytest.fixture(scope="module")
def models() -> dict[str, Sam2Model]:
    plain = tiny_sam2()
    prepare(plain, plan_quantization(plain.config, tiny_recipe()))
    w8a8 = dataclasses.replace(deployable(tiny_recipe(bits="w8a8")), encoder_products="quantized")
    return {
        "float": plain,
        "w8a8": quantized(w8a8),
        "w4a8, input scales": quantized(deployable(tiny_recipe("saq-sam-plus", "w4a8"))),
        "w4a8, float products": quantized(deployable(tiny_recipe(bits="w4a8"))),
    }


def run(part: str, model: Sam2Model, inputs: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    graph = Graph(part)
    write_encoder(graph, model) if part == "encoder" else write_decoder(graph, model, **options)
    file: onnx.ModelProto = graph.model({})
    session = onnxruntime_session(file.SerializeToString(), threads=1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def relative(found: np.ndarray, wanted: torch.Tensor) -> float:
    return float(np.linalg.norm(found - wanted.numpy()) / np.linalg.norm(wanted.numpy()))


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_is_torchs(models: dict[str, Sam2Model], name: str) -> None:
    model = models[name]
    wanted = TorchBackend(model).encode(tiny_sam2_pixels())
    found = run("encoder", model, {"pixel_values": tiny_sam2_pixels().numpy()})
    spec = family_of(model.config).input_spec(model.config)
    assert list(found) == list(spec.features)
    for feature, expected in zip(spec.features, wanted.maps, strict=True):
        assert found[feature].shape == spec.features[feature]
        assert relative(found[feature], expected) < TOLERANCE.get(name, CHAOS), feature


def test_positions_are_interpolated_by_products(models: dict[str, Sam2Model]) -> None:
    """OpenVINO folded the bicubic operator in two minutes when it loaded SAM 2.1 tiny."""
    graph = Graph("encoder")
    write_encoder(graph, models["float"])
    assert "Resize" not in {node.op_type for node in graph.model({}).graph.node}


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompts", PROMPTS)
def test_the_decoder_is_torchs(models: dict[str, Sam2Model], name: str, prompts: str) -> None:
    model = models[name]
    features = TorchBackend(model).encode(tiny_sam2_pixels())
    spec = family_of(model.config).input_spec(model.config)
    maps = dict(zip(spec.features, (one.detach().numpy() for one in features.maps), strict=True))
    inputs = decoder_inputs(maps, PROMPTS[prompts], pads_boxes=spec.pads_boxes)
    size = np.array([50.0, 80.0], dtype=np.float32)
    found = run("decoder", model, {**inputs, "orig_im_size": size})
    logits, ious = TorchBackend(model).decode(features, PROMPTS[prompts], True)
    assert relative(found["low_res_masks"][:, 1:], logits) < TOLERANCE.get(name, CHAOS)
    assert relative(found["iou_predictions"][:, 1:], ious) < TOLERANCE.get(name, CHAOS)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(found["low_res_masks"]), (50, 80), mode="bilinear"
    )
    np.testing.assert_allclose(found["masks"], large.numpy(), atol=1e-4)
    assert found["object_score_logits"].shape == (3, 1)


@torch.inference_mode()
@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_a_single_mask_is_chosen_by_its_stability(threshold: float) -> None:
    model = tiny_sam2(1, tiny_sam2_config(dynamic_multimask_stability_thresh=threshold))
    features = TorchBackend(model).encode(tiny_sam2_pixels())
    spec = family_of(model.config).input_spec(model.config)
    maps = dict(zip(spec.features, (one.detach().numpy() for one in features.maps), strict=True))
    inputs = decoder_inputs(maps, PROMPTS["boxes"], pads_boxes=True)
    size = np.array([128.0, 128.0], dtype=np.float32)
    found = run("decoder", model, {**inputs, "orig_im_size": size}, single_mask=True)
    logits, ious = TorchBackend(model).decode(features, PROMPTS["boxes"], False)
    assert relative(found["low_res_masks"], logits) < 1e-4
    assert relative(found["iou_predictions"], ious) < 1e-4


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_an_export_predicts_what_its_checkpoint_predicts(tmp_path: Path, format_: str) -> None:
    recipe = deployable(tiny_recipe("saq-sam-plus", "w4a8"))
    result = saqsam.quantize(tiny_sam2(), tiny_sam2_processor(), recipe, tiny_data())
    result.save(tmp_path / "checkpoint")
    model, processor = saqsam.load(tmp_path / "checkpoint")
    export_model(model, processor, tmp_path / "export", format=format_)
    backend, own_processor = load_runtime(tmp_path / "export")
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    answers = []
    for predictor in (saqsam.Predictor(model, processor), saqsam.Predictor(backend, own_processor)):
        predictor.set_image(image)
        assert predictor.input_size == (128, 128)
        answers.append(predictor.predict(box=[5, 4, 60, 40], multimask_output=False))
    assert answers[0][0].shape == answers[1][0].shape == (1, 48, 80)
    assert np.linalg.norm(answers[0][2] - answers[1][2]) < CHAOS * np.linalg.norm(answers[0][2])
