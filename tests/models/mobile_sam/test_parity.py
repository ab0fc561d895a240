"""A converted MobileSAM computes what the official code does, without folding and with its own order of operands."""

from typing import Any

import pytest
import torch

from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.mobile_sam.official import from_official
from support.mobile_sam_reference import build, convert, encode, import_mobile_sam, randomize, small_official
from support.tiny_mobile_sam import pixels


@pytest.fixture(scope="module")
def official() -> Any:
    return small_official()


@pytest.fixture(scope="module")
def converted(official: Any) -> MobileSamModel:
    return convert(official)


# Points and boxes in pixels of the 128-px image, P = 3 prompts.
POINTS = torch.tensor(
    [[[20.0, 30.0], [90.5, 40.0]], [[64.0, 64.0], [1.0, 127.0]], [[5.0, 99.0], [50.0, 7.5]]]
)
LABELS = torch.tensor([[1, 0], [1, 1], [0, 1]])
BOXES = torch.tensor([[10.0, 12.0, 60.0, 70.5], [0.0, 0.0, 128.0, 128.0], [80.0, 5.0, 100.0, 120.0]])


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Every element agrees to 1e-4 of the largest one."""
    torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("image_size", "windows"),
    [
        (128, (7, 5, 6, 3)),
        (128, (7, 7, 14, 7)),
        (128, (7, 8, 4, 8)),
        (192, (7, 7, 14, 7)),
        (32, (7, 7, 14, 7)),
    ],
    ids=["padded", "published windows", "unpadded", "192 px", "32 px"],
)
@torch.no_grad()
def test_image_embeddings_agree(image_size: int, windows: tuple[int, ...]) -> None:
    official = small_official(image_size, windows)
    images = pixels(2, image_size)
    expected = encode(official, images)
    assert expected.shape == (2, 32, image_size // 16, image_size // 16)
    assert expected.std() > 0.5
    assert_close(convert(official, image_size).get_image_embeddings(images), expected)


@pytest.mark.parametrize("multi", [False, True], ids=["single", "multimask"])
@pytest.mark.parametrize(
    ("points", "boxes", "mask"),
    [
        (True, False, False),
        (False, True, False),
        (True, True, False),
        (True, False, True),
        (False, True, True),
        (False, False, True),
    ],
    ids=["points", "boxes", "points+boxes", "points+mask", "boxes+mask", "mask"],
)
@torch.no_grad()
def test_masks_agree(
    official: Any, converted: MobileSamModel, points: bool, boxes: bool, mask: bool, multi: bool
) -> None:
    images = pixels()
    # One mask prompt per image in transformers: the same for the three prompts, if there are others.
    prompts = len(POINTS) if points or boxes else 1
    masks = torch.randn((1, 1, 32, 32), generator=torch.Generator().manual_seed(2)) if mask else None
    sparse, dense = official.prompt_encoder(
        points=(POINTS, LABELS) if points else None,
        boxes=BOXES if boxes else None,
        masks=None if masks is None else masks.expand(prompts, -1, -1, -1),
    )
    expected_masks, expected_ious = official.mask_decoder(
        image_embeddings=encode(official, images),
        image_pe=official.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multi,
    )
    output = converted(
        images,
        input_points=POINTS[None] if points else None,
        input_labels=LABELS[None] if points else None,
        input_boxes=BOXES[None] if boxes else None,
        input_masks=masks,
        multimask_output=multi,
    )
    assert expected_masks.std() > 0.1
    assert_close(output.pred_masks[0], expected_masks)
    assert_close(output.iou_scores[0], expected_ious)


@torch.no_grad()
def test_layer_norm_eps_is_the_official_one() -> None:
    """eps shows where activations are small: there 1e-6 leaves the tolerance."""
    official = small_official(seed=4)
    official.image_encoder.layers[1].downsample.conv3.bn.weight.mul_(0.01)
    official.image_encoder.layers[1].downsample.conv3.bn.bias.mul_(0.01)
    expected = encode(official, pixels())
    config, tensors = from_official(official.state_dict(), image_size=128)
    assert config.vision_config.layer_norm_eps == config.mask_decoder_config.layer_norm_eps == 1e-5
    assert_close(build(config, tensors).get_image_embeddings(pixels()), expected)

    config.vision_config.layer_norm_eps = 1e-6
    wrong = build(config, tensors).get_image_embeddings(pixels())
    assert (wrong - expected).abs().max() > 1e-4 * expected.abs().max()


@pytest.mark.slow
@torch.no_grad()
def test_published_architecture_agrees() -> None:
    official = randomize(import_mobile_sam().build_sam_vit_t())
    images = pixels(1, 1024)
    expected = official.image_encoder(images)
    model = convert(official, 1024)
    assert_close(model.get_image_embeddings(images), expected)
    assert model.config.vision_config.to_dict() == MobileSamConfig().vision_config.to_dict()
    decoder, default = model.config.mask_decoder_config.to_dict(), MobileSamConfig().mask_decoder_config
    assert decoder == default.to_dict() | {"layer_norm_eps": 1e-5}
    assert model.config.prompt_encoder_config.to_dict() == MobileSamConfig().prompt_encoder_config.to_dict()
