"""Position tables of SAM v1 at other input sizes, against what transformers' attention does at run time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SamConfig, SamModel

from saqsam.models.building import build_model
from saqsam.models.sam.attention import QuantVisionAttention, to_quant_attention
from saqsam.models.sam.resizing import resize_sam
from saqsam.models.sam.shape_inference import infer_sam_config
from support.tiny_sam import PATCH_SIZE, tiny_config, tiny_sam

POS_EMBED = "vision_encoder.pos_embed"
SIZES = (24, 32, 96, 120)
"""Smaller and larger than 64, with grids that the window of 3 divides (24, 96, 120) and does not."""


def resized_model(size: int, config: SamConfig | None = None) -> SamModel:
    model = tiny_sam(config=config)
    new, tensors = resize_sam(model.config, model.state_dict(), size)
    return build_model(new, tensors, source="here")


def pixels(size: int) -> torch.Tensor:
    return torch.randn((1, 3, size, size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
def test_shapes_of_the_tables(size: int) -> None:
    config, tensors = resize_sam(tiny_config(), tiny_sam().state_dict(), size)
    grid = size // PATCH_SIZE
    assert tensors[POS_EMBED].shape == (1, grid, grid, 32)
    for block in range(4):
        for axis in "hw":
            rows = 2 * grid - 1 if block in (1, 3) else 2 * 3 - 1
            assert tensors[f"vision_encoder.layers.{block}.attn.rel_pos_{axis}"].shape == (rows, 16)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert config.vision_config.image_size == size
    if grid != 3:  # At the size of a window, shapes do not tell windowed blocks from global ones.
        vision = infer_sam_config(shapes).vision_config
        assert (vision.image_size, vision.global_attn_indexes) == (size, [1, 3])


def test_other_tensors_and_the_arguments_stay() -> None:
    config, tensors = tiny_config(), tiny_sam().state_dict()
    before = {name: value.clone() for name, value in tensors.items()}
    _, resized = resize_sam(config, tensors, 96)
    changed = {name for name in before if resized[name].shape != before[name].shape}
    tables = {f"vision_encoder.layers.{block}.attn.rel_pos_{axis}" for block in (1, 3) for axis in "hw"}
    assert changed == {POS_EMBED, *tables}
    for name, value in before.items():
        assert torch.equal(tensors[name], value), name
        assert name in changed or resized[name] is tensors[name], name
    assert config.to_dict() == tiny_config().to_dict()


def test_the_same_size_is_identical() -> None:
    tensors = tiny_sam().state_dict()
    config, resized = resize_sam(tiny_config(), tensors, 64)
    assert config.to_dict() == tiny_config().to_dict()
    for name, value in tensors.items():
        assert torch.equal(resized[name], value), name


@pytest.mark.parametrize("size", SIZES)
def test_relative_positions_equal_those_that_transformers_interpolates(size: int) -> None:
    """transformers interpolates tables of another grid in each call; with the stored tables it returns the same."""
    model = resized_model(size)
    original = tiny_sam()
    stale = copy.deepcopy(model)
    for block in (1, 3):
        for axis in "hw":
            table = getattr(original.vision_encoder.layers[block].attn, f"rel_pos_{axis}")
            assert getattr(stale.vision_encoder.layers[block].attn, f"rel_pos_{axis}").shape != table.shape
            setattr(stale.vision_encoder.layers[block].attn, f"rel_pos_{axis}", nn.Parameter(table.detach()))
    with torch.inference_mode():
        expected = stale.vision_encoder(pixels(size)).last_hidden_state
        assert torch.equal(model.vision_encoder(pixels(size)).last_hidden_state, expected)
        for layer in model.vision_encoder.layers:
            layer.attn = to_quant_attention(layer.attn)
            assert isinstance(layer.attn, QuantVisionAttention)
        found = model.vision_encoder(pixels(size)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_absolute_positions_are_interpolated_bicubically() -> None:
    table = tiny_sam().state_dict()[POS_EMBED]
    expected = F.interpolate(table.permute(0, 3, 1, 2), (12, 12), mode="bicubic", align_corners=False)
    _, resized = resize_sam(tiny_config(), {POS_EMBED: table.half()}, 96)
    torch.testing.assert_close(resized[POS_EMBED], expected.permute(0, 2, 3, 1), rtol=0, atol=1e-3)
    assert resized[POS_EMBED].dtype == torch.float32


@pytest.mark.parametrize(
    ("field", "value"), [("use_abs_pos", False), ("use_rel_pos", False), ("window_size", 0)]
)
def test_models_without_some_tables(field: str, value: object) -> None:
    config = tiny_config()
    setattr(config.vision_config, field, value)
    model = resized_model(96, config)
    expected = SamModel(resize_sam(config, {}, 96)[0]).state_dict()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    with torch.inference_mode():
        box = torch.tensor([[[9.0, 9.0, 60.0, 80.0]]])
        masks = model(pixel_values=pixels(96), input_boxes=box).pred_masks
    assert masks.isfinite().all()
    assert masks.std() > 0
