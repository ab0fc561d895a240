"""A predictor on an exported folder: without prompts, and shared by threads."""

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from saqsam.export import export_model
from saqsam.inference.predictor import Predictor
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from support.coco_folder import picture
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import GRID, tiny_processor

IMAGES = [picture((24 + 8 * seed, 40), seed=seed) for seed in range(3)]
BOX = [3, 3, 30, 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = quantize_tiny(deployable(tiny_recipe(bits="w8a8")))
    path = tmp_path_factory.mktemp("exports") / "onnx"
    export_model(model, tiny_processor(), path, format="onnx")
    return path


@pytest.fixture(params=["onnxruntime", "openvino"])
def predictor(request: pytest.FixtureRequest, folder: Path) -> Predictor:
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return Predictor(*load_runtime(folder, request.param))


def test_no_prompts_give_empty_results(predictor: Predictor) -> None:
    predictor.set_image(IMAGES[0])
    masks, ious, low_res = predictor.predict_batch(boxes=np.zeros((0, 4)))
    assert (masks.shape, masks.dtype) == ((0, 3, 24, 40), torch.bool)
    assert (ious.shape, low_res.shape) == ((0, 3), (0, 3, 4 * GRID, 4 * GRID))


def test_threads_share_a_backend(predictor: Predictor) -> None:
    handles = [predictor.encode(image) for image in IMAGES]
    expected = [predictor.predict(box=BOX, image=handle)[2] for handle in handles]

    def work(number: int) -> None:
        for _ in range(10):
            predictor.set_image(IMAGES[number])
            np.testing.assert_allclose(predictor.predict(box=BOX)[2], expected[number], atol=1e-4)

    with ThreadPoolExecutor(len(IMAGES)) as pool:
        for future in [pool.submit(work, number) for number in range(len(IMAGES))]:
            future.result()


def test_an_encoder_of_one_image_encodes_a_batch_one_by_one(predictor: Predictor) -> None:
    together = predictor.encode_batch(IMAGES)
    for one, image in zip(together, IMAGES, strict=True):
        np.testing.assert_allclose(one.features, predictor.encode(image).features, atol=1e-6)


def test_an_encoder_of_any_number_of_images_encodes_a_batch_at_once(tmp_path: Path) -> None:
    model = quantize_tiny(deployable(tiny_recipe(bits="w8a8")))
    export_model(model, tiny_processor(), tmp_path / "free", format="onnx", free_batch=True)
    predictor = Predictor(*load_runtime(tmp_path / "free"))
    together = predictor.encode_batch(IMAGES)
    for one, image in zip(together, IMAGES, strict=True):
        np.testing.assert_allclose(one.features, predictor.encode(image).features, atol=1e-3)
