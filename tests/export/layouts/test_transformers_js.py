"""The transformers-js layout: graphs that compute what transformers' `SamModel` computes, by transformers.js's names.

`SAQSAM_NODE_MODULES` names a node_modules folder with `@huggingface/transformers`, with which transformers.js itself
runs.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saqsam.export import export_model
from saqsam.inference.processing import preprocess
from saqsam.recipes.deployment import deployable
from support.client_steps import Exports, picture, run, write_exports
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_pixels, tiny_processor, tiny_sam
from support.transformers_js_client import needs_transformers_js, run_transformers_js

SIZE = (45, 60)
# Two prompts of two points, in pixels of the 64 px input.
POINTS = [[[30.0, 20.0], [5.0, 40.0]], [[11.0, 12.0], [50.0, 33.0]]]
LABELS = [[1, 0], [1, 1]]
ENCODER, DECODER = "onnx/vision_encoder", "onnx/prompt_encoder_mask_decoder"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("exports")
    return write_exports(tiny_sam(), tiny_processor(), root, "transformers-js", single_mask=False)


def prompt_of(points: list, labels: list) -> dict[str, np.ndarray]:
    return {
        "input_points": np.array([points], np.float32),
        "input_labels": np.array([labels], np.int64),
    }


@torch.inference_mode()
def test_the_graphs_compute_what_transformers_computes(exports: Exports) -> None:
    model, pixels = tiny_sam(), tiny_pixels()
    features = run(exports.encoder, {"pixel_values": pixels.numpy()})
    prompt = prompt_of(POINTS, LABELS)
    expected = model(
        pixel_values=pixels,
        input_points=torch.from_numpy(prompt["input_points"]),
        input_labels=torch.from_numpy(prompt["input_labels"]),
    )
    positions = model.get_image_wide_positional_embeddings().numpy()
    np.testing.assert_allclose(features["image_positional_embeddings"], positions, atol=1e-5)
    found = run(exports.decoder, {**prompt, **features})
    assert found["pred_masks"].shape == (1, 2, 3, 32, 32)
    assert found["iou_scores"].shape == (1, 2, 3)
    for name in ("pred_masks", "iou_scores"):
        wanted = getattr(expected, name).numpy()
        np.testing.assert_allclose(found[name], wanted, atol=1e-4 * np.abs(wanted).max())


@torch.inference_mode()
def test_several_images_are_computed_in_one_call(exports: Exports) -> None:
    model, pixels = tiny_sam(), tiny_pixels(batch=3)
    features = run(exports.encoder, {"pixel_values": pixels.numpy()})
    assert {values.shape for values in features.values()} == {(3, 32, 8, 8)}
    points = np.linspace(2, 60, 3 * 2 * 2 * 2, dtype=np.float32).reshape(3, 2, 2, 2)
    labels = np.array([[[1, 0], [1, 1]]] * 3)
    expected = model(
        pixel_values=pixels, input_points=torch.from_numpy(points), input_labels=torch.from_numpy(labels)
    )
    found = run(exports.decoder, {"input_points": points, "input_labels": labels, **features})
    for name in ("pred_masks", "iou_scores"):
        wanted = getattr(expected, name).numpy()
        assert found[name].shape == wanted.shape
        np.testing.assert_allclose(found[name], wanted, atol=1e-4 * np.abs(wanted).max())


def test_labels_2_and_3_are_the_corners_of_a_box(exports: Exports) -> None:
    features = run(exports.encoder, {"pixel_values": tiny_pixels().numpy()})
    box = [[[5.0, 6.0], [50.0, 40.0]]]
    found = run(exports.decoder, {**prompt_of(box, [[2, 3]]), **features})
    feeds = {
        "image_embeddings": features["image_embeddings"],
        "point_coords": np.array([[*box[0], [0.0, 0.0]]], np.float32),
        "point_labels": np.array([[2, 3, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 32, 32), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(SIZE, np.float32),
    }
    expected = exports.own_masks(feeds)
    np.testing.assert_array_equal(found["pred_masks"][0], expected["low_res_masks"][:, 1:])
    np.testing.assert_array_equal(found["iou_scores"][0], expected["iou_predictions"][:, 1:])


def test_labels_of_points_that_do_not_count_are_taken(exports: Exports) -> None:
    features = run(exports.encoder, {"pixel_values": tiny_pixels().numpy()})
    padded = [
        run(exports.decoder, {**prompt_of(POINTS, [[1, label], [1, 1]]), **features}) for label in (-10, -1)
    ]
    np.testing.assert_array_equal(padded[0]["pred_masks"], padded[1]["pred_masks"])


def test_configurations(exports: Exports) -> None:
    config = json.loads((exports.folder / "config.json").read_text())
    assert config["model_type"] == "sam"
    assert config["transformers.js_config"] == {"dtype": "fp32"}
    assert "quantization_config" not in config
    settings = json.loads((exports.folder / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "SamImageProcessor"
    assert settings["processor_class"] == "SamProcessor"
    assert settings["size"] == {"longest_edge": 64}
    assert settings["pad_size"] == {"height": 64, "width": 64}
    assert settings["do_normalize"] is True
    assert settings["image_mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(("bits", "dtype", "suffix"), [("w8a8", "q8", "_quantized"), ("w4a8", "q4", "_q4")])
def test_file_variants_are_those_of_the_dtype(tmp_path: Path, bits: str, dtype: str, suffix: str) -> None:
    model = quantize_tiny(deployable(tiny_recipe(bits=bits)))
    written = export_model(model, tiny_processor(), tmp_path / "out", layout="transformers-js")
    assert list(written.files) == [f"{ENCODER}{suffix}.onnx", f"{DECODER}{suffix}.onnx"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": dtype}


@pytest.mark.slow
@needs_transformers_js
@pytest.mark.parametrize("bits", [None, "w8a8", "w4a8"])
def test_transformers_js_itself_gets_the_masks(tmp_path: Path, bits: str | None) -> None:
    model = tiny_sam() if bits is None else quantize_tiny(deployable(tiny_recipe(bits=bits)))
    export_model(model, tiny_processor(), tmp_path / "sam", layout="transformers-js")
    image = picture(SIZE)
    prompt = {"input_points": POINTS, "input_labels": LABELS}
    found = run_transformers_js(tmp_path / "sam", "SamModel", image, prompt)
    assert found["pred_masks"].shape == (1, 2, 3, 32, 32)
    assert found["masks"].shape == (2, 3, *SIZE)
    # transformers.js resizes with other filters, so torch gets its pixels.
    pixels = torch.from_numpy(found["pixels"])
    assert float((pixels - preprocess(tiny_processor(), image)[0]).abs().mean()) < 0.3
    scaled = np.array(POINTS) * [64 / 60, 48 / 45]
    with torch.inference_mode():
        expected = model(
            pixel_values=pixels,
            input_points=torch.tensor(scaled, dtype=torch.float32)[None],
            input_labels=torch.tensor(LABELS)[None],
        ).pred_masks.numpy()
    tolerance = 1e-3 if bits is None else 0.1
    assert np.linalg.norm(found["pred_masks"] - expected) < tolerance * np.linalg.norm(expected)
