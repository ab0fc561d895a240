"""MobileSAM as a model of transformers, and TinyViT computed by hand."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskGeneration

from saqsam.models.mobile_sam.configuration import MobileSamConfig, MobileSamVisionConfig
from saqsam.models.mobile_sam.model import MobileSamModel, block_names
from saqsam.models.mobile_sam.tiny_vit import (
    MobileSamVisionAttention,
    MobileSamVisionLayer,
    merge_windows,
    offset_indexes,
    partition_windows,
)
from support.tiny_mobile_sam import pixels, tiny_config, tiny_mobile_sam

POINTS = torch.tensor([[[[40.0, 50.0]], [[100.0, 3.0]]]])


@pytest.fixture(scope="module")
def model() -> MobileSamModel:
    return tiny_mobile_sam()


def test_defaults_are_the_published_model() -> None:
    config = MobileSamConfig()
    vision = config.vision_config
    assert (vision.image_size, vision.patch_size, vision.grids) == (1024, 16, (256, 128, 64, 64))
    with torch.device("meta"):
        model = MobileSamModel(config)
    encoder = sum(parameter.numel() for parameter in model.vision_encoder.parameters())
    assert encoder == 5_738_964  # without the classifier and the batch norms of the official checkpoint
    linear = [m for m in model.vision_encoder.modules() if isinstance(m, torch.nn.Linear)]
    convolutions = [m for m in model.vision_encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert (len(linear), len(convolutions)) == (40, 2 + 6 + 9 + 10 + 2)


@torch.no_grad()
def test_output_shapes(model: MobileSamModel) -> None:
    embedding = model.vision_encoder(pixels(2)).last_hidden_state
    assert embedding.shape == (2, 32, 8, 8)
    assert 0.1 < embedding.std() < 10
    output = model(pixels(), input_points=POINTS)
    assert output.pred_masks.shape == (1, 2, 3, 32, 32)
    assert output.iou_scores.shape == (1, 2, 3)


@torch.no_grad()
def test_encoder_in_parts_equals_the_whole(model: MobileSamModel) -> None:
    encoder = model.vision_encoder
    names = [name for stage in block_names(model.config.vision_config) for name in stage]
    assert [model.get_submodule(name) for name in names] == list(encoder.blocks())
    hidden = encoder.patch_embed(pixels())
    shapes = [tuple(hidden.shape[1:])]
    for block in encoder.blocks():
        hidden = block(hidden)
        shapes.append(tuple(hidden.shape[1:]))
    assert torch.equal(encoder.neck(hidden), encoder(pixels()).last_hidden_state)
    stages = [(32, 32, 8)] * 2, [(16, 16, 16)] * 2, [(8, 8, 24)] * 3, [(8, 8, 32)] * 2
    assert shapes == [shape for stage in stages for shape in stage]


@pytest.mark.parametrize(("size", "window"), [(8, 3), (8, 4), (5, 7), (7, 7)])
def test_windows_are_put_together_again(size: int, window: int) -> None:
    values = torch.arange(2 * size * (size + 1) * 3.0).reshape(2, size, size + 1, 3)
    windows = partition_windows(values, window)
    rows, columns = -(-size // window), -(-(size + 1) // window)
    assert windows.shape == (2 * rows * columns, window, window, 3)
    assert torch.equal(merge_windows(windows, size, size + 1), values)
    if rows > 1:
        # The first window of the second row, filled with zeros beyond the map.
        part = values[0, window : 2 * window, :window]
        assert torch.equal(windows[columns, : len(part)], part)
        assert not windows[columns, len(part) :].any()


def test_offset_indexes() -> None:
    indexes = offset_indexes(3)
    assert indexes.shape == (9, 9)
    for first, second in itertools.product(range(9), repeat=2):
        dy, dx = abs(first // 3 - second // 3), abs(first % 3 - second % 3)
        assert indexes[first, second] == 3 * dy + dx


@torch.no_grad()
def test_attention_equals_a_sum_over_pairs() -> None:
    """One window of 2 x 2 positions, two heads of three channels, computed pair by pair."""
    generator = torch.Generator().manual_seed(0)
    attention = MobileSamVisionAttention(width=6, heads=2, window=2)
    for parameter in attention.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn((1, 2, 2, 6), generator=generator)
    output, probabilities = attention(hidden_states=hidden)

    tokens = attention.qkv(hidden).reshape(4, 18)
    expected = torch.zeros(4, 6)
    for head in range(2):
        q, k, v = (tokens[:, 6 * part + 3 * head : 6 * part + 3 * head + 3] for part in range(3))
        for i in range(4):
            logits = torch.stack(
                [
                    q[i] @ k[j] / 3**0.5
                    + attention.attention_biases[head, 2 * abs(i // 2 - j // 2) + abs(i % 2 - j % 2)]
                    for j in range(4)
                ]
            )
            weights = logits.softmax(0)
            torch.testing.assert_close(probabilities[0, head, i], weights)
            expected[i, 3 * head : 3 * head + 3] = sum(weights[j] * v[j] for j in range(4))
    torch.testing.assert_close(output.reshape(4, 6), attention.proj(expected))


@torch.no_grad()
def test_padding_is_normalized_and_attended_to() -> None:
    """A grid of 2 in windows of 3: the five padded positions take part as normalized zeros."""
    config = tiny_config().vision_config
    config.window_sizes = [7, 3, 6, 3]
    block = MobileSamVisionLayer(config, stage=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn((1, 2, 2, 16), generator=generator)
    padded = block.layer_norm1.bias.expand(1, 3, 3, 16).clone()
    padded[:, :2, :2] = block.layer_norm1(hidden)
    expected, _ = block.attn(padded)
    torch.testing.assert_close(block.attend(hidden), expected[:, :2, :2])


@torch.no_grad()
def test_last_merging_may_reduce_the_grid() -> None:
    config = tiny_config(merge_strides=[2, 2, 2], image_size=128)
    config.prompt_encoder_config.patch_size = 32
    config.prompt_encoder_config.image_embedding_size = 4
    model = tiny_mobile_sam(config=config)
    assert model.get_image_embeddings(pixels()).shape == (1, 32, 4, 4)


@pytest.mark.parametrize("image_size", [16, 48, 96])
@torch.no_grad()
def test_small_images(image_size: int) -> None:
    model = tiny_mobile_sam(config=tiny_config(image_size))
    grid = image_size // 16
    output = model(pixels(1, image_size), input_points=POINTS)
    assert output.pred_masks.shape == (1, 2, 3, 4 * grid, 4 * grid)
    assert output.pred_masks.isfinite().all()


def test_images_of_another_size_are_refused(model: MobileSamModel) -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(3, 128, 128\), got \(3, 64, 64\)"):
        model(pixels(1, 64), input_points=POINTS)


def test_positional_embedding_is_tied(model: MobileSamModel) -> None:
    shared = model.shared_image_embedding.positional_embedding
    assert model.prompt_encoder.shared_embedding.positional_embedding is shared


def test_initial_weights_give_finite_masks() -> None:
    torch.manual_seed(0)
    model = MobileSamModel(tiny_config()).eval()
    assert not model.vision_encoder.layers[1].blocks[0].attn.attention_biases.any()
    assert 0.5 < model.shared_image_embedding.positional_embedding.std() < 2
    with torch.no_grad():
        assert model(pixels(), input_points=POINTS).pred_masks.isfinite().all()


@pytest.mark.parametrize("auto", [MobileSamModel, AutoModel, AutoModelForMaskGeneration])
@torch.no_grad()
def test_saved_model_is_loaded(model: MobileSamModel, tmp_path: Path, auto: type) -> None:
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mobile_sam"
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded) is MobileSamModel
    assert not loaded.training
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    expected, output = (some(pixels(), input_points=POINTS).pred_masks for some in (model, loaded))
    assert torch.equal(output, expected)


def test_saved_configuration_is_loaded(tmp_path: Path) -> None:
    config = tiny_config(mlp_ratio=3.0, local_conv_size=5)
    config.save_pretrained(tmp_path)
    for loaded in (MobileSamConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is MobileSamConfig
        assert type(loaded.vision_config) is MobileSamVisionConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert loaded.vision_config.grids == (32, 16, 8, 8)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["vision_config"]["hidden_sizes"] == [8, 16, 24, 32]
    assert raw["vision_config"]["mlp_ratio"] == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depths", [1, 1, 2], r"depths: expected 4 positive integers, got \[1, 1, 2\]"),
        ("depths", [1, 0, 2, 1], r"depths: expected 4 positive integers, got \[1, 0, 2, 1\]"),
        ("hidden_sizes", [], "hidden_sizes: expected 1 positive integers"),
        ("merge_strides", [2, 2, 1, 1], "merge_strides: expected 3 positive integers"),
        ("window_sizes", [7, 7, -7, 7], "window_sizes: expected 4 positive integers"),
        ("num_attention_heads", [1, 3, 3, 4], "expected a divisor of the 16 channels of stage 1, got 3"),
        ("image_size", 120, "image_size: expected a multiple of the patch size of 16, got 120"),
        ("local_conv_size", 4, "an odd local_conv_size, got 8 and 4"),
        ("output_channels", 16, "output_channels: expected 32 as in the rest of the model, got 16"),
        ("num_pos_feats", 32, "num_pos_feats: expected 16 as in the rest of the model, got 32"),
        ("merge_strides", [2, 2, 2], r"prompt_encoder_config\.patch_size: expected 32 as .*, got 16"),
    ],
)
def test_contradicting_sizes_are_refused(field: str, value: object, message: str) -> None:
    config = tiny_config()
    setattr(config.vision_config, field, value)
    with pytest.raises(ValueError, match=message):
        MobileSamModel(config)
