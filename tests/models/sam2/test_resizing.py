"""SAM 2 at other input sizes, against a `Sam2Model` of that configuration and the same tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Sam2Model

import saqsam
from saqsam.inference.predictor import Predictor
from saqsam.models.processing import build_processor, input_side
from saqsam.models.sam2.configuration import sam2_fields
from saqsam.models.sam2.official import VARIANTS, config_of_variant
from saqsam.models.sam2.resizing import bicubic_matrix, resize_sam2_config
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam2 import tiny_sam2, tiny_sam2_config, tiny_sam2_processor

SIZES = (64, 96, 192, 256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny_sam2")
    tiny_sam2().save_pretrained(path)
    tiny_sam2_processor().save_pretrained(path)
    return path


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_those_of_a_model_of_that_configuration(folder: Path, size: int) -> None:
    model, processor = saqsam.load(folder, image_size=size)
    reference = Sam2Model(tiny_sam2_config(size))
    reference.load_state_dict(tiny_sam2().state_dict())
    assert sam2_fields(model.config) == sam2_fields(reference.config)
    assert processor.to_dict() == build_processor(reference.config).to_dict()
    pixels = processor(tiny_data()[0].image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, size, size)
    box = torch.tensor([[[9.0, 9.0, 50.0, 60.0]]])
    with torch.inference_mode():
        found, expected = (one.eval()(pixel_values=pixels, input_boxes=box) for one in (model, reference))
    assert found.pred_masks.shape[-1] == size // 4
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.iou_scores, expected.iou_scores)


def test_the_models_own_size_changes_nothing(folder: Path) -> None:
    (plain, processor), (sized, other) = saqsam.load(folder), saqsam.load(folder, image_size=128)
    assert sized.config.to_dict() == plain.config.to_dict()
    assert other.to_dict() == processor.to_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(sized.state_dict()[name], value), name


def test_every_published_variant_has_a_configuration_at_512_px() -> None:
    """MedSAM2 is SAM 2.1 tiny at 512 px."""
    for variant in VARIANTS:
        name = "vision_encoder.backbone.pos_embed"
        config = config_of_variant(variant, {name: torch.zeros(1, variant.width, 7, 7)})
        resized = resize_sam2_config(config, 512)
        assert resized.vision_config.backbone_feature_sizes == [[128, 128], [64, 64], [32, 32]]
        assert resized.prompt_encoder_config.image_size == 512
        assert config.prompt_encoder_config.image_size == 1024


def test_quantized_at_another_size(folder: Path, tmp_path: Path) -> None:
    model, processor = saqsam.load(folder, image_size=96)
    result = saqsam.quantize(model, processor, tiny_recipe("mse", "w8a8"), tiny_data())
    result.save(tmp_path / "packed")
    again, other = saqsam.load(tmp_path / "packed")
    assert input_side(other) == 96
    found = []
    for subject in ((result.model, processor), (again, other)):
        predictor = Predictor(*subject)
        predictor.set_image(tiny_data()[0].image)
        found.append(predictor.predict(box=np.array([5, 6, 50, 40]), return_logits=True)[0])
    assert np.isfinite(found[0]).all()
    assert np.array_equal(*found)
    with pytest.raises(ValueError, match="is quantized at 96 px"):
        saqsam.load(tmp_path / "packed", image_size=128)


@pytest.mark.parametrize(
    ("size", "what"), [(100, "such as 96 and 128; got 100"), (16, "got 16"), (4128, "got 4128")]
)
def test_sizes_that_no_model_has(folder: Path, size: int, what: str) -> None:
    with pytest.raises(ValueError, match=f"^image_size: expected a multiple of 32 from 32 to 4096, {what}"):
        saqsam.load(folder, image_size=size)


def test_windows_of_the_first_stage_divide_every_size() -> None:
    config = tiny_sam2_config(384)
    config.vision_config.backbone_config.window_size_per_stage = [12, 4, 6, 3]
    with pytest.raises(ValueError, match=r"a multiple of 96 from 96 to 4032, such as 384 and 480; got 416"):
        resize_sam2_config(config, 416)
    assert resize_sam2_config(config, 480).prompt_encoder_config.image_size == 480


def test_bicubic_interpolation_is_a_product_along_each_axis() -> None:
    table = torch.randn(1, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(table, size=(32, 24), mode="bicubic")
    found = bicubic_matrix(7, 32) @ table @ bicubic_matrix(5, 24).T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
