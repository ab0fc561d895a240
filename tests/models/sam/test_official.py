"""Renaming of official checkpoints, pinned to the official code."""

import io
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import SamConfig, SamModel

from saqsam.models.building import build_model
from saqsam.models.loading import load
from saqsam.models.sam.official import from_official, infer_config, rename_key
from support.small_official import GRID, IMAGE, WIDTH, convert, small_official
from support.torchvision_stub import import_segment_anything

import_segment_anything()
from segment_anything import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l  # noqa: E402
from segment_anything.modeling import Sam  # noqa: E402

SHARED = "shared_image_embedding.positional_embedding"
SHARED_COPY = "prompt_encoder.shared_embedding.positional_embedding"


@pytest.fixture(scope="module")
def official() -> Sam:
    return small_official()


@pytest.fixture(scope="module")
def converted(official: Sam) -> SamModel:
    return convert(official)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn((2, 3, IMAGE, IMAGE), generator=torch.Generator().manual_seed(1))


# Points and boxes in pixels of the padded 128-px image, P = 3 prompts.
POINTS = torch.tensor(
    [[[20.0, 30.0], [90.5, 40.0]], [[64.0, 64.0], [1.0, 127.0]], [[5.0, 99.0], [50.0, 7.5]]]
)
LABELS = torch.tensor([[1, 0], [1, 1], [0, 1]])
BOXES = torch.tensor([[10.0, 12.0, 60.0, 70.5], [0.0, 0.0, 128.0, 128.0], [80.0, 5.0, 100.0, 120.0]])


def official_outputs(
    official: Sam, embedding: torch.Tensor, points: bool, boxes: bool, masks: torch.Tensor | None, multi: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Low-resolution masks (P, M, 4h, 4w) and predicted IoUs (P, M) for one image embedding (1, C, h, w)."""
    sparse, dense = official.prompt_encoder(
        points=(POINTS, LABELS) if points else None, boxes=BOXES if boxes else None, masks=masks
    )
    return official.mask_decoder(
        image_embeddings=embedding,
        image_pe=official.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multi,
    )


@torch.no_grad()
def test_image_embeddings_agree(official: Sam, converted: SamModel, pixels: torch.Tensor) -> None:
    expected = official.image_encoder(pixels)
    assert expected.std() > 0.5
    torch.testing.assert_close(converted.get_image_embeddings(pixels), expected, atol=1e-4, rtol=0)


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
    official: Sam,
    converted: SamModel,
    pixels: torch.Tensor,
    points: bool,
    boxes: bool,
    mask: bool,
    multi: bool,
) -> None:
    embedding = official.image_encoder(pixels[:1])
    # One mask prompt per image in transformers: the same for the three prompts, if there are others.
    prompts = len(POINTS) if points or boxes else 1
    masks = (
        torch.randn((1, 1, 4 * GRID, 4 * GRID), generator=torch.Generator().manual_seed(2)) if mask else None
    )
    expected_masks, expected_ious = official_outputs(
        official,
        embedding,
        points,
        boxes,
        None if masks is None else masks.expand(prompts, -1, -1, -1),
        multi,
    )
    output = converted(
        image_embeddings=converted.get_image_embeddings(pixels[:1]),
        input_points=POINTS[None] if points else None,
        input_labels=LABELS[None] if points else None,
        input_boxes=BOXES[None] if boxes else None,
        input_masks=masks,
        multimask_output=multi,
    )
    assert expected_masks.std() > 0.1
    torch.testing.assert_close(output.pred_masks[0], expected_masks, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.iou_scores[0], expected_ious, atol=1e-4, rtol=0)


@torch.no_grad()
def test_layer_norm_eps_of_the_decoder_is_the_official_one(pixels: torch.Tensor) -> None:
    """eps shows where activations are small: there transformers' default of 1e-6 leaves the tolerance."""
    official = small_official(seed=4)
    official.image_encoder.neck[3].weight.mul_(0.02)
    official.mask_decoder.transformer.layers[0].norm2.weight.mul_(0.02)
    config, tensors = from_official(official.state_dict())
    ours = build_model(config, tensors, source="test")
    config, _ = from_official(official.state_dict())
    config.mask_decoder_config.layer_norm_eps = 1e-6
    default = build_model(config, tensors, source="test")

    expected, _ = official_outputs(official, official.image_encoder(pixels[:1]), False, True, None, True)
    masks, wrong = (
        model(pixel_values=pixels[:1], input_boxes=BOXES[None]).pred_masks[0] for model in (ours, default)
    )
    torch.testing.assert_close(masks, expected, atol=1e-4, rtol=0)
    assert (wrong - expected).abs().max() > 1e-4


@torch.no_grad()
def test_other_depth_of_the_iou_head_agrees(pixels: torch.Tensor) -> None:
    official = small_official(seed=3, iou_head_depth=4)
    model = convert(official)
    _, expected = official_outputs(official, official.image_encoder(pixels[:1]), True, False, None, True)
    output = model(pixel_values=pixels[:1], input_points=POINTS[None], input_labels=LABELS[None])
    torch.testing.assert_close(output.iou_scores[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("build", "depth", "width", "heads", "global_layers"),
    [
        (build_sam_vit_b, 12, 768, 12, [2, 5, 8, 11]),
        (build_sam_vit_l, 24, 1024, 16, [5, 11, 17, 23]),
        (build_sam_vit_h, 32, 1280, 16, [7, 15, 23, 31]),
    ],
    ids=["vit_b", "vit_l", "vit_h"],
)
def test_key_sets_of_the_published_variants_are_complete(
    build: object, depth: int, width: int, heads: int, global_layers: list[int]
) -> None:
    assert callable(build)
    with torch.device("meta"):
        official = build()
    config, renamed = from_official(official.state_dict())
    vision = config.vision_config
    assert (vision.num_hidden_layers, vision.hidden_size) == (depth, width)
    assert (vision.num_attention_heads, list(vision.global_attn_indexes)) == (heads, global_layers)
    assert (vision.image_size, vision.patch_size, vision.window_size) == (1024, 16, 14)

    with torch.device("meta"):
        model = SamModel(config)
    expected = {name: value.shape for name, value in model.state_dict().items() if name != SHARED_COPY}
    assert {name: value.shape for name, value in renamed.items()} == expected


def test_published_configuration_differs_from_the_default_in_one_field() -> None:
    """`SamConfig()` is ViT-B; only the eps of the decoder's layer norms is not the official one."""
    with torch.device("meta"):
        official = build_sam_vit_b()
    config, _ = from_official(official.state_dict())
    ours, default = config.to_dict(), SamConfig().to_dict()
    ours["mask_decoder_config"].pop("layer_norm_eps")
    default["mask_decoder_config"].pop("layer_norm_eps")
    ours["vision_config"]["global_attn_indexes"] = tuple(ours["vision_config"]["global_attn_indexes"])
    default["vision_config"]["global_attn_indexes"] = tuple(default["vision_config"]["global_attn_indexes"])
    assert ours == default
    assert config.mask_decoder_config.layer_norm_eps == 1e-5


def test_position_encoding_is_shared(official: Sam, converted: SamModel) -> None:
    shared = converted.shared_image_embedding.positional_embedding
    assert converted.prompt_encoder.shared_embedding.positional_embedding is shared
    assert torch.equal(shared, official.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix)


def test_pixel_statistics_are_ignored(official: Sam) -> None:
    state = dict(official.state_dict()) | {
        "pixel_mean": torch.zeros(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
    }
    assert from_official(state)[1].keys() == from_official(official.state_dict())[1].keys()


@pytest.mark.parametrize(
    "key", ["image_encoder.blocks.0.attn.lora.weight", "foo", "mask_decoder.norm.weight"]
)
def test_unknown_key_is_named(official: Sam, key: str) -> None:
    with pytest.raises(ValueError, match="not a tensor of the official"):
        rename_key(key)
    with pytest.raises(ValueError, match=f"1 unknown tensors.*{key}"):
        from_official(dict(official.state_dict()) | {key: torch.zeros(1)})


@pytest.mark.parametrize("key", [*sorted(small_official().state_dict())[::15], "image_encoder.pos_embed"])
def test_any_missing_key_is_refused(official: Sam, key: str) -> None:
    state = dict(official.state_dict())
    del state[key]
    with pytest.raises(ValueError, match="missing"):
        build_model(*from_official(state), source="test")


def test_misshapen_tensor_is_named(official: Sam) -> None:
    state = dict(official.state_dict())
    state["mask_decoder.iou_token.weight"] = torch.zeros((1, WIDTH + 1))
    with pytest.raises(ValueError, match=r"misshapen: mask_decoder.iou_token.weight of shape \(1, 33\)"):
        build_model(*from_official(state), source="test")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("image_encoder.pos_embed", (1, 8, 6, 32), "square"),
        ("image_encoder.pos_embed", (8, 8, 32), "4 dimensions"),
        ("image_encoder.blocks.0.attn.rel_pos_h", (5, 0), "heads"),
        ("image_encoder.blocks.0.attn.rel_pos_h", (5, 7), "heads"),
        ("image_encoder.blocks.2.attn.rel_pos_h", (7, 16), "one window size"),
        ("image_encoder.blocks.2.attn.rel_pos_h", (6, 16), "one window size"),
        ("mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight", (12, 32), "8 heads"),
    ],
)
def test_contradicting_shapes_are_refused(
    official: Sam, key: str, shape: tuple[int, ...], message: str
) -> None:
    shapes = {name: tuple(value.shape) for name, value in official.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        infer_config(shapes | {key: shape})


def test_something_else_than_a_tensor_is_refused(official: Sam) -> None:
    state = dict(official.state_dict()) | {"mask_decoder.iou_token.weight": io.BytesIO()}
    with pytest.raises(ValueError, match=r"expected a tensor under 'mask_decoder\.iou_token\.weight'"):
        from_official(state)


@pytest.mark.parametrize("how", ["zip", "legacy", "wrapped", "safetensors"])
def test_file_is_loaded(official: Sam, converted: SamModel, tmp_path: Path, how: str) -> None:
    state = dict(official.state_dict())
    if how == "safetensors":
        path = tmp_path / "medsam.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "sam_vit_b_01ec64.pth"
        content = {"model": state, "epoch": 3} if how == "wrapped" else state
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    model, processor = load(path)
    path.write_bytes(bytes(path.stat().st_size))  # the weights must not depend on the file any more
    assert not model.training
    assert model.config.to_dict() == converted.config.to_dict()
    for name, value in converted.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert processor.target_size == IMAGE
    assert processor.image_processor.mask_size["longest_edge"] == 4 * GRID


def test_float16_file_is_loaded_as_float32(official: Sam, tmp_path: Path) -> None:
    state = {name: value.half() for name, value in official.state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    model, _ = load(tmp_path / "half.pth")
    assert model.dtype == torch.float32
    assert torch.equal(model.vision_encoder.pos_embed, state["image_encoder.pos_embed"].float())


def test_nan_in_a_file_is_named(official: Sam, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in official.state_dict().items()}
    state["image_encoder.neck.0.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"nan\.pth: vision_encoder\.neck\.conv1\.weight holds NaN"):
        load(tmp_path / "nan.pth")


def test_error_of_a_file_names_the_file(official: Sam, tmp_path: Path) -> None:
    torch.save(dict(official.state_dict()) | {"mask_decoder.foo": torch.zeros(1)}, tmp_path / "foo.pth")
    with pytest.raises(ValueError, match=r"foo\.pth: 1 unknown tensors"):
        load(tmp_path / "foo.pth")


def test_stand_in_for_torchvision_leaves_no_trace() -> None:
    before = {name for name in sys.modules if name.startswith("torchvision.") or name == "torchvision"}
    import_segment_anything()
    assert {
        name for name in sys.modules if name.startswith("torchvision.") or name == "torchvision"
    } == before
