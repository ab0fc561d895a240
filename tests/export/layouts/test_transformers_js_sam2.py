"""The transformers-js layout of SAM 2: graphs that compute what transformers' `Sam2Model` computes.

transformers.js 4.3 sends boxes [B, 0, 4] with points alone, points [B, 1, 0, 2] and labels [B, K, 0] with boxes alone,
and with both one box per image.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saqsam
from saqsam.export import export_model
from saqsam.inference.processing import preprocess
from saqsam.recipes.deployment import deployable
from support.client_steps import Exports, picture, run, write_exports
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam2 import tiny_sam2, tiny_sam2_pixels, tiny_sam2_processor
from support.transformers_js_client import needs_transformers_js, run_transformers_js

SIZE = (45, 60)
# In pixels of the 128 px input.
POINTS = [[[30.0, 20.0], [5.0, 40.0]], [[11.0, 12.0], [50.0, 33.0]]]
LABELS = [[1, 0], [1, 1]]
BOXES = [[10.0, 20.0, 90.0, 100.0], [40.0, 30.0, 60.0, 80.0], [0.0, 0.0, 127.0, 127.0]]
PROMPTS: dict[str, dict[str, Any]] = {
    "points": {"input_points": POINTS, "input_labels": LABELS},
    "boxes": {"input_boxes": BOXES},
    "points and a box": {"input_points": POINTS[:1], "input_labels": LABELS[:1], "input_boxes": BOXES[:1]},
}
OUTPUTS = ("iou_scores", "pred_masks", "object_score_logits")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("exports")
    return write_exports(tiny_sam2(), tiny_sam2_processor(), root, "transformers-js", single_mask=False)


def sent(prompt: dict[str, Any], images: int = 1) -> dict[str, np.ndarray]:
    """Return the inputs that transformers.js sends for a prompt, the same for each image."""
    boxes = np.array(prompt.get("input_boxes", np.zeros((0, 4))), np.float32)
    points = np.array(prompt.get("input_points", np.zeros((1, 0, 2))), np.float32)
    labels = np.array(prompt.get("input_labels", np.zeros((len(boxes), 0))), np.int64)
    inputs = {"input_points": points, "input_labels": labels, "input_boxes": boxes}
    return {name: np.stack([value] * images) for name, value in inputs.items()}


@torch.inference_mode()
def wanted_of(model: Any, pixels: torch.Tensor, prompt: dict[str, Any]) -> dict[str, np.ndarray]:
    images = len(pixels)
    tensors = {name: torch.tensor([value] * images) for name, value in prompt.items()}
    expected = model(pixel_values=pixels, **tensors)
    return {name: getattr(expected, name).numpy() for name in OUTPUTS}


@torch.inference_mode()
def test_the_encoder_returns_the_levels_of_transformers(exports: Exports) -> None:
    pixels = tiny_sam2_pixels(batch=2)
    found = run(exports.encoder, {"pixel_values": pixels.numpy()})
    expected = tiny_sam2().get_image_embeddings(pixels)
    assert list(found) == [f"image_embeddings.{level}" for level in range(3)]
    for values, level in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(values, level.numpy(), atol=1e-4 * float(level.abs().max()))


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_graphs_compute_what_transformers_computes(exports: Exports, kind: str) -> None:
    pixels = tiny_sam2_pixels()
    features = run(exports.encoder, {"pixel_values": pixels.numpy()})
    found = run(exports.decoder, {**sent(PROMPTS[kind]), **features})
    assert tuple(found) == OUTPUTS
    for name, values in wanted_of(tiny_sam2(), pixels, PROMPTS[kind]).items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("kind", PROMPTS)
def test_several_images_are_computed_in_one_call(exports: Exports, kind: str) -> None:
    pixels = tiny_sam2_pixels(batch=3)
    features = run(exports.encoder, {"pixel_values": pixels.numpy()})
    found = run(exports.decoder, {**sent(PROMPTS[kind], 3), **features})
    for name, values in wanted_of(tiny_sam2(), pixels, PROMPTS[kind]).items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, atol=1e-4 * np.abs(values).max())


def test_one_box_goes_with_several_lists_of_points(exports: Exports) -> None:
    features = run(exports.encoder, {"pixel_values": tiny_sam2_pixels().numpy()})
    both = {**PROMPTS["points"], "input_boxes": BOXES[:1]}
    repeated = {**both, "input_boxes": [BOXES[0]] * 2}
    found, expected = (run(exports.decoder, {**sent(prompt), **features}) for prompt in (both, repeated))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_labels_of_points_that_do_not_count_are_taken(exports: Exports) -> None:
    features = run(exports.encoder, {"pixel_values": tiny_sam2_pixels().numpy()})
    padded = []
    for label in (-10, -1):
        prompt = {"input_points": POINTS, "input_labels": [[1, label], [1, 1]]}
        padded.append(run(exports.decoder, {**sent(prompt), **features}))
    np.testing.assert_array_equal(padded[0]["pred_masks"], padded[1]["pred_masks"])


def test_configurations(exports: Exports) -> None:
    config = json.loads((exports.folder / "config.json").read_text())
    assert config["model_type"] == "sam2"
    assert config["vision_config"]["num_feature_levels"] == 3
    assert config["transformers.js_config"] == {"dtype": "fp32"}
    settings = json.loads((exports.folder / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "Sam2ImageProcessor"
    assert settings["processor_class"] == "Sam2Processor"
    assert settings["size"] == {"height": 128, "width": 128}
    assert settings["do_resize"] is True
    assert "pad_size" not in settings
    assert settings["image_mean"] == [0.485, 0.456, 0.406]


@pytest.mark.slow
@needs_transformers_js
@pytest.mark.parametrize("bits", [None, "w8a8", "w4a8"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_transformers_js_itself_gets_the_masks(tmp_path: Path, bits: str | None, kind: str) -> None:
    model = tiny_sam2()
    if bits is not None:
        recipe = deployable(tiny_recipe(bits=bits))
        model = saqsam.quantize(model, tiny_sam2_processor(), recipe, tiny_data()).model
    export_model(model, tiny_sam2_processor(), tmp_path / "sam2", layout="transformers-js")
    image, scale = picture(SIZE), np.array([60 / 128, 45 / 128])
    prompt = dict(PROMPTS[kind])
    if "input_points" in prompt:
        prompt["input_points"] = (np.array(prompt["input_points"]) * scale).tolist()
    if "input_boxes" in prompt:
        prompt["input_boxes"] = [(np.array(prompt["input_boxes"]) * [*scale, *scale]).tolist()]
    found = run_transformers_js(tmp_path / "sam2", "Sam2Model", image, prompt)
    count = max(len(prompt.get("input_points", [])), len(PROMPTS[kind].get("input_boxes", [])))
    assert found["pred_masks"].shape == (1, count, 3, 32, 32)
    assert found["masks"].shape == (count, 3, *SIZE)
    # transformers.js resizes with other filters, so torch gets its pixels.
    pixels = torch.from_numpy(found["pixels"])
    assert float((pixels - preprocess(tiny_sam2_processor(), image)[0]).abs().mean()) < 0.3
    tolerance = 1e-3 if bits is None else 0.1
    for name, values in wanted_of(model, pixels, PROMPTS[kind]).items():
        assert np.linalg.norm(found[name] - values) < tolerance * np.linalg.norm(values)
