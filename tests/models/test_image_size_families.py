"""Every family at another input size: loaded, quantized, saved, reloaded and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saqsam
from saqsam.export import export_model
from saqsam.inference.predictor import Predictor
from saqsam.models.format import ModelFormat
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.processing import build_processor, input_side
from saqsam.models.registry import FAMILIES, family_of
from saqsam.runtimes import load_runtime
from support.tiny_mobile_sam import tiny_config as tiny_mobile_config
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_sam
from support.tiny_sam2 import tiny_sam2
from support.tiny_sam3_tracker import tiny_sam3_tracker
from support.tiny_sam_hq import tiny_sam_hq

MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "sam": (tiny_sam, 96),
    "sam_hq": (tiny_sam_hq, 96),
    "sam2": (tiny_sam2, 96),
    "mobile_sam": (tiny_mobile_sam, 80),
    "sam3_tracker": (tiny_sam3_tracker, 98),
}
"""A tiny model of each family, and another size that its windows do not divide."""


@pytest.fixture(params=[family.name for family in FAMILIES])
def resized(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, int]:
    """A model of a family and its processor, at another size."""
    make, size = MODELS[request.param]
    model = make()
    model.save_pretrained(tmp_path / "model")
    build_processor(model.config).save_pretrained(tmp_path / "model")
    return (*saqsam.load(tmp_path / "model", image_size=size), size)


def logits(model: Any, processor: Any) -> np.ndarray:
    predictor = Predictor(model, processor)
    predictor.set_image(tiny_data()[0].image)
    found: np.ndarray = predictor.predict(box=np.array([5, 6, 50, 40]), return_logits=True)[0]
    assert np.isfinite(found).all()
    return found


def test_every_family_has_a_method_of_its_own() -> None:
    for family in FAMILIES:
        assert type(family.format).resize is not ModelFormat.resize, family.name


def test_saved_and_loaded(resized: tuple[Any, Any, int], tmp_path: Path) -> None:
    model, processor, size = resized
    spec = family_of(model.config).input_spec(model.config)
    assert spec.image_size == input_side(processor) == size
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    assert np.array_equal(logits(*saqsam.load(tmp_path / "again")), logits(model, processor))


def test_quantized_and_exported(resized: tuple[Any, Any, int], tmp_path: Path) -> None:
    model, processor, size = resized
    result = saqsam.quantize(model, processor, tiny_recipe("mse", "w8a8"), tiny_data())
    result.save(tmp_path / "packed")
    packed, other = saqsam.load(tmp_path / "packed")
    assert input_side(other) == size
    assert np.array_equal(logits(packed, other), logits(result.model, processor))
    with pytest.raises(ValueError, match=f"quantized at {size} px"):
        saqsam.load(tmp_path / "packed", image_size=2 * size)
    export_model(model, processor, tmp_path / "onnx")
    backend, exported = load_runtime(tmp_path / "onnx", "onnxruntime", threads=1)
    assert input_side(exported) == size
    np.testing.assert_allclose(logits(backend, exported), logits(model, processor), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [16, 80, 96, 256])
def test_a_mobile_sam_is_a_model_of_that_configuration(size: int, tmp_path: Path) -> None:
    tiny_mobile_sam().save_pretrained(tmp_path)
    model, _ = saqsam.load(tmp_path, image_size=size)
    reference = MobileSamModel(tiny_mobile_config(size))
    reference.load_state_dict(tiny_mobile_sam().state_dict())
    pixels = torch.randn((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[[2.0, 3.0, 12.0, 14.0]]])
    with torch.inference_mode():
        found, expected = (one.eval()(pixel_values=pixels, input_boxes=box) for one in (model, reference))
    assert found.pred_masks.shape[-1] == size // 4
    assert torch.equal(found.pred_masks, expected.pred_masks)
    with pytest.raises(
        ValueError, match=r"^image_size: expected a multiple of 16 from 16 to 4096, such as 96 and 112"
    ):
        saqsam.load(tmp_path, image_size=100)
