"""SAM 2 from every place where its weights live: folders of the image and the video model, official files."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

import saqsam
from saqsam.models.sam2.configuration import (
    check_sam2_config,
    count_parameters,
    parse_sam2_config,
    sam2_fields,
)
from saqsam.models.sam2.official import VARIANTS, config_of_variant, from_official, rename_official
from saqsam.utils.errors import CheckpointError
from support.sam2_official import official_state_dict
from support.tiny_sam2 import tiny_sam2, tiny_sam2_config, tiny_sam2_pixels, tiny_sam2_processor

RAW: dict[str, Any] = json.loads(tiny_sam2_config().to_json_string(use_diff=False))


def changed(path: str, value: object) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(RAW))
    *parents, name = path.split(".")
    section = raw
    for parent in parents:
        section = section[parent]
    section[name] = value
    return raw


def same_masks(one: Sam2Model, other: Sam2Model) -> None:
    with torch.inference_mode():
        outputs = [
            model(pixel_values=tiny_sam2_pixels(), input_boxes=torch.tensor([[[9.0, 9.0, 90.0, 80.0]]]))
            for model in (one, other)
        ]
    assert torch.equal(outputs[0].pred_masks, outputs[1].pred_masks)


# Folders


def test_a_folder_of_the_image_model(tmp_path: Path) -> None:
    tiny_sam2().save_pretrained(tmp_path)
    tiny_sam2_processor().save_pretrained(tmp_path)
    model, processor = saqsam.load(tmp_path)
    same_masks(model, tiny_sam2())
    assert type(processor).__name__ == "Sam2Processor"
    settings = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    assert settings["image_processor_type"] == "Sam2ImageProcessor"


def test_a_folder_of_the_video_model_is_read_for_images(tmp_path: Path) -> None:
    config = Sam2VideoConfig(
        vision_config=tiny_sam2_config().vision_config.to_dict(),
        prompt_encoder_config=tiny_sam2_config().prompt_encoder_config.to_dict(),
        mask_decoder_config=tiny_sam2_config().mask_decoder_config.to_dict(),
        image_size=128,
        memory_attention_hidden_size=32,
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=16,
        memory_fuser_embed_dim=32,
        memory_attention_num_layers=1,
        memory_attention_downsample_rate=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[8, 8],
    )
    video = Sam2VideoModel(config)
    video.load_state_dict(tiny_sam2().state_dict(), strict=False)
    video.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam2_video"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the memory is dropped without a warning
        model, _ = saqsam.load(tmp_path)
    assert isinstance(model, Sam2Model)
    same_masks(model, tiny_sam2())


# Official files


@pytest.fixture(scope="module")
def published() -> Sam2Model:
    """The smallest published variant, at random."""
    config = config_of_variant(VARIANTS[0], {"vision_encoder.backbone.pos_embed": torch.zeros(1, 96, 7, 7)})
    return tiny_sam2(config=config)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_official_file(published: Sam2Model, tmp_path: Path, suffix: str) -> None:
    tensors = official_state_dict(published)
    path = tmp_path / f"sam2.1_hiera_tiny{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"model": tensors}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, processor = saqsam.load(path)
    expected = published.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert sam2_fields(model.config) == sam2_fields(published.config)
    assert processor.image_processor.size["height"] == 1024


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_published_variants_have_transformers_sizes(variant: Any) -> None:
    side = 14 if variant.name == "base_plus" else 7
    table = {"vision_encoder.backbone.pos_embed": torch.zeros(1, variant.width, side, side)}
    config = config_of_variant(variant, table)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Sam2Model(config).parameters()) / 1e6
    published = {"tiny": 31.0, "small": 38.9, "base_plus": 73.3, "large": 216.9}[variant.name]
    assert parameters == pytest.approx(published, abs=1.0)
    assert count_parameters(config) / 1e6 == pytest.approx(parameters, rel=0.1)


def test_the_default_configuration_is_the_tiny_variant() -> None:
    table = {"vision_encoder.backbone.pos_embed": torch.zeros(1, 96, 7, 7)}
    assert sam2_fields(config_of_variant(VARIANTS[0], table)) == sam2_fields(Sam2Config())


def test_unknown_and_missing_tensors_are_refused_by_name(published: Sam2Model) -> None:
    tensors = {
        name: value
        for name, value in official_state_dict(published).items()
        if name.partition(".")[0]
        in ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed")
    }
    with pytest.raises(CheckpointError, match=r"1 unknown tensors.*sam_mask_decoder\.extra"):
        rename_official({**tensors, "sam_mask_decoder.extra": torch.ones(1)})
    missing = dict(tensors)
    del missing["sam_prompt_encoder.point_embeddings.2.weight"]
    with pytest.raises(CheckpointError, match=r"expected 4 embeddings of points.*\[0, 1, 3\]"):
        rename_official(missing)
    cut = {name: value for name, value in tensors.items() if ".blocks.11." not in name}
    with pytest.raises(CheckpointError, match=r"published SAM 2 \(tiny 96 and 12, .* got 96 and 11"):
        from_official(cut)


# Configurations


def test_a_configuration_survives_parsing() -> None:
    config = parse_sam2_config(RAW, "config.json")
    assert sam2_fields(config) == sam2_fields(tiny_sam2_config())
    check_sam2_config(config, "config.json")
    assert json.loads(json.dumps(sam2_fields(config))) == sam2_fields(config)


BACKBONE = "vision_config.backbone_config"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prompt_encoder_config.image_size", 100, "image_size: expected a multiple of 32, got 100"),
        ("prompt_encoder_config.image_size", 160, "backbone_feature_sizes: expected"),
        ("prompt_encoder_config.image_size", [128, 64], "image_size: expected an integer"),
        ("prompt_encoder_config.image_size", 2**20, "image_size: expected an integer"),
        ("prompt_encoder_config.num_point_embeddings", 5, "num_point_embeddings: expected 4"),
        ("mask_decoder_config.num_hidden_layers", 3, "num_hidden_layers: expected 2"),
        ("mask_decoder_config.hidden_size", 64, "fpn_hidden_size is 32 but"),
        ("vision_config.fpn_top_down_levels", [1, 2, 3], "fpn_top_down_levels: expected"),
        ("vision_config.fpn_kernel_size", 3, "fpn_kernel_size: expected 1"),
        ("vision_config.backbone_channel_list", [16, 32, 64, 128], "backbone_channel_list: expected"),
        (f"{BACKBONE}.num_attention_heads_per_stage", [3, 2, 2, 4], "expected a divisor"),
        (f"{BACKBONE}.window_size_per_stage", [8, 3, 6, 3], "expected even windows"),
        (f"{BACKBONE}.window_size_per_stage", [6, 4, 6, 3], "expected a multiple of 24"),
        (f"{BACKBONE}.blocks_per_stage", [1, 1, 3], "blocks_per_stage: expected a list of 4"),
        (f"{BACKBONE}.global_attention_blocks", [-1], "global_attention_blocks: expected"),
        (f"{BACKBONE}.global_attention_blocks", [2], "expected windows in the first block of a stage"),
        (f"{BACKBONE}.num_channels", 4, "num_channels: expected 3"),
        (f"{BACKBONE}.hidden_act", "none", "hidden_act: expected one of"),
        (f"{BACKBONE}.embed_dim_per_stage", [16, 32, 64, 10**9], "embed_dim_per_stage: expected"),
    ],
)
def test_wrong_configurations_are_refused_by_their_field(path: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")) as error:
        parse_sam2_config(changed(path, value), "config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{BACKBONE}.mlp_ratio", 3.0),
        (f"{BACKBONE}.layer_norm_eps", 1e-5),
        (f"{BACKBONE}.global_attention_blocks", [3, 4]),
        ("prompt_encoder_config.scale", 2),
        ("mask_decoder_config.dynamic_multimask_stability_delta", 0.1),
    ],
)
def test_what_changes_a_mask_is_a_field(path: str, value: object) -> None:
    assert sam2_fields(parse_sam2_config(changed(path, value), "")) != sam2_fields(tiny_sam2_config())


# Packed checkpoints


def test_a_packed_checkpoint_is_loaded_by_the_auto_class(tmp_path: Path) -> None:
    result = saqsam.quantize(tiny_sam2(), recipe=saqsam.recipe_for("weight-only", bits="w4"))
    result.save(tmp_path / "packed")
    model, processor = saqsam.load(tmp_path / "packed")
    auto = AutoModel.from_pretrained(tmp_path / "packed")
    assert isinstance(auto, Sam2Model)
    same_masks(model, auto)
    same_masks(model, result.model)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    predictor = saqsam.Predictor(model, processor)
    predictor.set_image(image)
    masks, _, low_res = predictor.predict(box=[5, 5, 70, 50], multimask_output=False)
    assert masks.shape == (1, 60, 90)
    assert low_res.shape == (1, 32, 32)


def test_other_processors_are_refused(tmp_path: Path) -> None:
    tiny_sam2().save_pretrained(tmp_path)
    for content, message in (
        (
            {"image_processor_type": "SamImageProcessor"},
            "expected Sam2ImageProcessor, got 'SamImageProcessor'",
        ),
        ({"size": {"height": 64, "width": 64}}, "expected images of 128 px as in config.json, got 64x64"),
        ({"size": {"longest_edge": 128}}, "size: expected {height, width}"),
        ({"do_pad": True}, "do_pad: expected false"),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            saqsam.load(tmp_path)
