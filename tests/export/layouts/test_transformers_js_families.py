"""The transformers-js layout of MobileSAM, which is a `SamModel` there, and of SAM 3's tracker."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saqsam.export import export_model
from saqsam.inference.processing import preprocess
from saqsam.models.processing import build_processor
from support.client_steps import picture, run, write_exports
from support.tiny_mobile_sam import pixels as tiny_mobile_sam_pixels
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_sam3_tracker import tiny_sam3_tracker, tiny_sam3_tracker_pixels
from support.transformers_js_client import needs_transformers_js, run_transformers_js

SIZE = (45, 60)
# In pixels of the inputs of 128 and 112 px.
POINTS = np.array([[[30.0, 20.0], [5.0, 40.0]], [[11.0, 12.0], [50.0, 33.0]]], np.float32)
LABELS = np.array([[1, 0], [1, 1]], np.int64)


@dataclass(frozen=True)
class Case:
    model: Callable[[], Any]
    pixels: Callable[[], torch.Tensor]
    client: str
    model_type: str
    processor: str
    boxes: bool


CASES = {
    "mobile_sam": Case(
        tiny_mobile_sam, tiny_mobile_sam_pixels, "SamModel", "sam", "SamProcessor", boxes=False
    ),
    "sam3_tracker": Case(
        tiny_sam3_tracker,
        tiny_sam3_tracker_pixels,
        "Sam3TrackerModel",
        "sam3_tracker",
        "Sam2Processor",
        boxes=True,
    ),
}
cases = pytest.mark.parametrize("name", CASES)


@torch.inference_mode()
def wanted_of(model: Any, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    prompt = {"input_points": torch.from_numpy(POINTS[None]), "input_labels": torch.from_numpy(LABELS[None])}
    expected = model(pixel_values=pixels, **prompt)
    return {name: getattr(expected, name).numpy() for name in ("iou_scores", "pred_masks")}


@cases
def test_the_graphs_compute_what_torch_computes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = case.model()
    exports = write_exports(
        model, build_processor(model.config), tmp_path, "transformers-js", single_mask=False
    )
    features = run(exports.encoder, {"pixel_values": case.pixels().numpy()})
    prompt = {"input_points": POINTS[None], "input_labels": LABELS[None]}
    if case.boxes:
        prompt["input_boxes"] = np.zeros((1, 0, 4), np.float32)
    found = run(exports.decoder, {**prompt, **features})
    for output, values in wanted_of(model, case.pixels()).items():
        assert found[output].shape == values.shape
        np.testing.assert_allclose(found[output], values, atol=2e-4 * np.abs(values).max())
    config = json.loads((exports.folder / "config.json").read_text())
    assert config["model_type"] == case.model_type
    settings = json.loads((exports.folder / "preprocessor_config.json").read_text())
    assert settings["processor_class"] == case.processor


@pytest.mark.slow
@needs_transformers_js
@cases
def test_transformers_js_itself_gets_the_masks(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = case.model()
    processor = build_processor(model.config)
    export_model(model, processor, tmp_path / "model", layout="transformers-js")
    side = case.pixels().shape[-1]
    scale = np.array([60, 45]) / side if case.boxes else 60 / side  # SAM 3 stretches images
    prompt = {"input_points": (POINTS * scale).tolist(), "input_labels": LABELS.tolist()}
    found = run_transformers_js(tmp_path / "model", case.client, picture(SIZE), prompt)
    assert found["masks"].shape == (2, 3, *SIZE)
    # transformers.js resizes with other filters, so torch gets its pixels.
    pixels = torch.from_numpy(found["pixels"])
    assert float((pixels - preprocess(processor, picture(SIZE))[0]).abs().mean()) < 0.3
    for output, values in wanted_of(model, pixels).items():
        assert np.linalg.norm(found[output] - values) < 1e-3 * np.linalg.norm(values)
