"""An encoder with a free batch computes each image as if it were alone; a decoder takes one embedding per prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SamModel

from saqsam.export import check_export, export_model
from saqsam.inference.predictor import Predictor
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from support.client_steps import run
from support.tiny_quantized import quantize_tiny, tiny_data, tiny_recipe
from support.tiny_sam import tiny_pixels, tiny_processor, tiny_sam


@pytest.fixture(scope="module", params=["float", "w4a8"])
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with a free batch and with one image per call, to be changed by no test."""
    bits, root = request.param, tmp_path_factory.mktemp("exports")
    model: SamModel = tiny_sam() if bits == "float" else quantize_tiny(deployable(tiny_recipe(bits=bits)))
    export_model(model, tiny_processor(), root / "free", free_batch=True)
    export_model(model, tiny_processor(), root / "one")
    return root / "free", root / "one"


@pytest.mark.parametrize("count", [1, 3])
def test_images_do_not_affect_each_other(exports: tuple[Path, Path], count: int) -> None:
    free, one = exports
    pixels = torch.cat([tiny_pixels(seed=seed) for seed in range(count)]).numpy()
    found = run(free / "encoder.onnx", {"pixel_values": pixels})["image_embeddings"]
    assert found.shape == (count, 32, 8, 8)
    for index in range(count):
        alone = run(one / "encoder.onnx", {"pixel_values": pixels[index : index + 1]})["image_embeddings"]
        np.testing.assert_allclose(found[index], alone[0], atol=1e-5 * np.abs(alone).max())


def test_a_decoder_takes_an_embedding_per_prompt(exports: tuple[Path, Path]) -> None:
    free, _ = exports
    pixels = torch.cat([tiny_pixels(seed=seed) for seed in range(2)]).numpy()
    embeddings = run(free / "encoder.onnx", {"pixel_values": pixels})["image_embeddings"]
    feeds = {
        "point_coords": np.array([[[30, 20], [0, 0]], [[12, 50], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]] * 2, np.float32),
        "mask_input": np.zeros((1, 1, 32, 32), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([48, 64], np.float32),
    }
    found = run(free / "decoder.onnx", {"image_embeddings": embeddings, **feeds})
    for index in range(2):
        own = {name: values[index : index + 1] for name, values in feeds.items() if name.startswith("point")}
        alone = run(
            free / "decoder.onnx", {**feeds, **own, "image_embeddings": embeddings[index : index + 1]}
        )
        for name, values in alone.items():
            np.testing.assert_allclose(found[name][index], values[0], atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_compute_the_same_masks(exports: tuple[Path, Path], runtime: str) -> None:
    masks = []
    for folder in exports:
        predictor = Predictor(*load_runtime(folder, runtime, threads=1))
        predictor.set_image(tiny_data()[0].image)
        masks.append(predictor.predict(box=np.array([5, 6, 50, 40]), return_logits=True)[0])
    np.testing.assert_allclose(masks[0], masks[1], atol=1e-4 * np.abs(masks[1]).max())


def test_other_formats_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="free_batch: the encoder of the format openvino takes one image"):
        check_export("openvino", tmp_path / "out", free_batch=True, overwrite=False)
