"""SAM 3's tracker as ONNX: encoder and decoder compute what torch computes, in both runtimes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Sam3TrackerModel

import saqsam
from saqsam.export import export_model
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam3_tracker import attention
from saqsam.export.onnx.writers import graph_writer
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
from support.tiny_sam3_tracker import (
    tiny_sam3_tracker,
    tiny_sam3_tracker_config,
    tiny_sam3_tracker_pixels,
    tiny_sam3_tracker_processor,
)

BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 111.0, 111.0], [40.0, 30.0, 60.0, 80.0]])
NAMES = ("float", "four levels", "padded windows", "w8a8", "w4a8", "heads and embeddings")
CHAOS = 0.05
"""See `test_onnx.CHAOS`."""


def quantized(recipe: Recipe) -> Sam3TrackerModel:
    return quantize(tiny_sam3_tracker(), tiny_sam3_tracker_processor(), recipe, tiny_data()).model


@pytest.fixture(scope="module")
def models() -> dict[str, Sam3TrackerModel]:
    w8a8 = dataclasses.replace(deployable(tiny_recipe(bits="w8a8")), encoder_products="quantized")
    extra = {"patch_embedding": 8, "upscaling": 8, "hypernetworks": 8, "iou_head": 8}
    return {
        "float": tiny_sam3_tracker(),
        "four levels": tiny_sam3_tracker(all_levels=True),
        "padded windows": tiny_sam3_tracker(config=tiny_sam3_tracker_config(window=3)),
        "w8a8": quantized(w8a8),
        "w4a8": quantized(deployable(tiny_recipe("saq-sam-plus", "w4a8"))),
        "heads and embeddings": quantized(deployable(tiny_recipe(bits="w8a8", extra=extra))),
    }


def run(part: str, model: Sam3TrackerModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    graph, writer = Graph(part), graph_writer(model.config)
    if part == "encoder":
        writer.write_encoder(graph, model)
    else:
        writer.write_decoder(graph, model, single_mask=False)
    session = onnxruntime_session(graph.model({}).SerializeToString(), threads=1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def relative(found: np.ndarray, wanted: torch.Tensor) -> float:
    return float(np.linalg.norm(found - wanted.numpy()) / np.linalg.norm(wanted.numpy()))


def tolerance(name: str) -> float:
    return 1e-5 if name in NAMES[:3] else CHAOS


@pytest.mark.parametrize("most", [2**22, 512])
@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_is_torchs(
    models: dict[str, Sam3TrackerModel], name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CACHED_BLOCK_LOGITS", most)
    model = models[name]
    wanted = TorchBackend(model).encode(tiny_sam3_tracker_pixels())
    found = run("encoder", model, {"pixel_values": tiny_sam3_tracker_pixels().numpy()})
    spec = family_of(model.config).input_spec(model.config)
    assert list(found) == list(spec.features)
    for feature, expected in zip(spec.features, wanted.maps, strict=True):
        assert found[feature].shape == spec.features[feature]
        assert relative(found[feature], expected) < tolerance(name), feature


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_is_torchs(models: dict[str, Sam3TrackerModel], name: str) -> None:
    model = models[name]
    features = TorchBackend(model).encode(tiny_sam3_tracker_pixels())
    spec = family_of(model.config).input_spec(model.config)
    maps = dict(zip(spec.features, (one.detach().numpy() for one in features.maps), strict=True))
    inputs = decoder_inputs(maps, Prompts(boxes=BOXES), pads_boxes=spec.pads_boxes)
    found = run("decoder", model, {**inputs, "orig_im_size": np.array([50.0, 80.0], dtype=np.float32)})
    logits, ious = TorchBackend(model).decode(features, Prompts(boxes=BOXES), True)
    assert relative(found["low_res_masks"][:, 1:], logits) < tolerance(name)
    assert relative(found["iou_predictions"][:, 1:], ious) < tolerance(name)


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
@pytest.mark.parametrize("is_float", [True, False])
def test_an_export_predicts_what_its_model_predicts(
    models: dict[str, Sam3TrackerModel], tmp_path: Path, format_: str, is_float: bool
) -> None:
    model, processor = models["float" if is_float else "w4a8"], tiny_sam3_tracker_processor()
    export_model(model, processor, tmp_path / "export", format=format_)
    backend, own_processor = load_runtime(tmp_path / "export")
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    answers = []
    for predictor in (saqsam.Predictor(model, processor), saqsam.Predictor(backend, own_processor)):
        predictor.set_image(image)
        answers.append(predictor.predict(box=[5, 4, 60, 40], multimask_output=False))
    assert answers[0][0].shape == answers[1][0].shape == (1, 48, 80)
    assert (answers[0][0] == answers[1][0]).mean() > (0.999 if is_float else 0.9)


@pytest.mark.parametrize("options", [{"opset": 17}, {"free_batch": True}, {"single_mask": True}])
def test_options_of_exports(
    models: dict[str, Sam3TrackerModel], tmp_path: Path, options: dict[str, Any]
) -> None:
    model, processor = models["w8a8"], tiny_sam3_tracker_processor()
    export_model(model, processor, tmp_path / "export", **options)
    backend, _ = load_runtime(tmp_path / "export")
    found = backend.encode(tiny_sam3_tracker_pixels()).embedding
    assert (
        relative(np.asarray(found), TorchBackend(model).encode(tiny_sam3_tracker_pixels()).embedding) < CHAOS
    )


def test_layouts_of_clients_refuse_by_name(models: dict[str, Sam3TrackerModel], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SAM 3 tracker") as error:
        export_model(models["float"], tiny_sam3_tracker_processor(), tmp_path / "out", layout="osam")
    assert "\n" not in str(error.value)
